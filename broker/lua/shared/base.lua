-- What the functions share. Redis does not roll back a function that fails: check first, write the new place,
-- then remove from the old one.

local function now()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function num(x) return string.format('%.0f', x) end          -- tostring() would round the low digits away

-- Counters are changed once a call, however many jobs it moves: queue -> state -> difference. A function that fails has
-- done what it had done until then, and that is counted too.
local moved = {}

local function counted(callback)
  return function(keys, argv)
    moved = {}
    local done, reply = pcall(callback, keys, argv)
    for queue, states in pairs(moved) do
      for state, n in pairs(states) do
        if n ~= 0 then redis.call('HINCRBY', K.states(queue), state, n) end
      end
    end
    if not done then error(reply, 0) end
    return reply
  end
end

local function register(name, callback, flags)
  redis.register_function{function_name = 'by_' .. name, callback = counted(callback), flags = flags or {'allow-oom'}}
end

-- The id of a child of an array is `<parent>:<index>`, and its record names its parent. -> parent's id, index; or nil
local function array_of(id)
  local parent, index = string.match(id, '^(.+):(%d+)$')
  if parent and redis.call('HEXISTS', K.job(id), 'parent') == 1 then return parent, index end
end

-- The counters of a queue, and the event for those who follow. reason: of an end, else ''. SUCCEEDED and FAILED are
-- totals: they count what ended so since the yard began, also when the records are gone.
local function count_state(queue, was, state)
  local states = moved[queue] or {}
  moved[queue] = states
  if was then states[was] = (states[was] or 0) - 1 end
  states[state] = (states[state] or 0) + 1
end

-- One field takes least room and time; only the reason, its last word, has blanks in it.
local EVENTS = '100000'
local function tell_state(id, queue, state, reason)
  if redis.call('EXISTS', K.events_off) == 1 then return end
  redis.call('XADD', K.events, 'MAXLEN', '~', EVENTS, '*', 'e', id .. ' ' .. queue .. ' ' .. state .. ' ' .. reason)
end

-- What the configuration says of the stream; without it there are no events.
local function keep_events(settings)
  if not settings or settings.stream ~= false then
    redis.call('DEL', K.events_off)
  else
    redis.call('SET', K.events_off, '1')
    redis.call('DEL', K.events)
  end
end

local function field_of(name, ...)
  for i = 1, select('#', ...) - 1, 2 do
    if select(i, ...) == name then return (select(i + 1, ...)) end
  end
end

-- A parent's record counts its children by state, in `n:<state>`.
local function count_child(parent, was, state)
  local job = K.job(parent)
  redis.call('HINCRBY', job, 'n:' .. state, 1)
  if was then redis.call('HINCRBY', job, 'n:' .. was, -1) end
  if state == 'RUNNING' then redis.call('HSETNX', job, 'started', num(now())) end
end

-- Every change of a job's state goes through here.
local function become(id, state, ...)
  local job = K.job(id)
  local h = redis.call('HMGET', job, 'state', 'queue', 'parent')
  redis.call('HSET', job, 'state', state, ...)
  local was, queue = h[1], h[2] or field_of('queue', ...)
  if was == state or not queue then return end
  count_state(queue, was, state)
  if h[3] then count_child(h[3], was, state) end
  local ended = state == 'FAILED' or state == 'SUCCEEDED'
  if not was and not ended then return end   -- that it was sent is no news
  tell_state(id, queue, state, ended and field_of('reason', ...) or '')
end
