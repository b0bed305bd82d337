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

-- The id of a child of an array is `<parent>:<index>`, and its record names its parent. -> parent's id, index; or nil
local function array_of(id)
  local parent, index = string.match(id, '^(.+):(%d+)$')
  if parent and redis.call('HEXISTS', K.job(id), 'parent') == 1 then return parent, index end
end

-- Every change of a job's state goes through here. A parent's record counts its children by state, in `n:<state>`.
local function become(id, state, ...)
  local parent = string.match(id, '^(.+):%d+$')
  local was = parent and redis.call('HMGET', K.job(id), 'parent', 'state')
  redis.call('HSET', K.job(id), 'state', state, ...)
  if not parent or not was[1] or was[2] == state then return end
  redis.call('HINCRBY', K.job(parent), 'n:' .. state, 1)
  if was[2] then redis.call('HINCRBY', K.job(parent), 'n:' .. was[2], -1) end
  if state == 'RUNNING' then redis.call('HSETNX', K.job(parent), 'started', num(now())) end
end
