-- What the functions share. Redis does not roll back a function that fails: check first, write the new place,
-- then remove from the old one.

local function now()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function num(x) return string.format('%.0f', x) end          -- tostring() would round the low digits away

local function register(name, callback, flags)
  redis.register_function{function_name = 'by_' .. name, callback = callback, flags = flags or {'allow-oom'}}
end

-- Every change of a job's state goes through here.
local function become(id, state, ...)
  redis.call('HSET', K.job(id), 'state', state, ...)
end
