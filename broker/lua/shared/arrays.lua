-- Arrays: a parent, which has the document, and children, small records that come after it in chunks.
--
-- A parent's record says its size in `array`, how many children there are in `spawned` (from when it was accepted at
-- the door), and their number by state in `n:<state>`. What is left to be done with the children stands in the outbox,
-- `array:<id>`. A parent that is to end has `close` (Celery's state), `close_reason`, and `hard` when those that run are
-- to be stopped; `fanned` says how many children have been told.

-- The end of a job is decided; its follow-ups are still to be recorded. Celery state: SUCCESS, FAILURE or REVOKED.
local function hand_over_end(id, celery_state, reason)
  redis.call('HSET', K.outbox, 'end:' .. id, cjson.encode({id = id, state = celery_state, reason = reason}))
  redis.call('HSET', K.job(id), 'ending', celery_state)
  redis.call('PUBLISH', K.duty, 'outbox')
end

local function array_duty(id)
  redis.call('HSET', K.outbox, 'array:' .. id, cjson.encode({id = id}))
  redis.call('PUBLISH', K.duty, 'outbox')
end

-- It waits for nothing any more: its children may come.
local function open_array(queue, id)
  local h = redis.call('HMGET', K.job(id), 'array', 'spawned')
  become(id, 'PENDING')
  redis.call('HSET', K.unspawned(queue), id, num(tonumber(h[1]) - tonumber(h[2])))
  array_duty(id)
end

-- All children end, those that run only when it is hard. -> false when that was known
local function close_array(id, celery_state, reason, hard)
  local job = K.job(id)
  local h = redis.call('HMGET', job, 'close', 'hard', 'queue')
  if h[1] and (h[2] or not hard) then return false end
  redis.call('HSETNX', job, 'close', celery_state)
  redis.call('HSETNX', job, 'close_reason', reason)
  redis.call('HSETNX', job, 'revoked', reason)
  if hard then redis.call('HSET', job, 'hard', '1', 'cancel', reason) end
  redis.call('HSET', job, 'fanned', '0')
  redis.call('HDEL', K.unspawned(h[3]), id)
  array_duty(id)
  return true
end

-- Why the array of this child is to end, or nil.
local function closing(id)
  local parent = array_of(id)
  return parent and redis.call('HGET', K.job(parent), 'close_reason') or nil
end

-- When the last child has ended, so does the parent; by whoever ended that child.
local function child_ended(parent)
  local h = redis.call('HMGET', K.job(parent), 'array', 'n:SUCCEEDED', 'n:FAILED', 'close', 'close_reason', 'ending')
  local failed = tonumber(h[3] or 0)
  if not h[1] or h[6] or tonumber(h[2] or 0) + failed < tonumber(h[1]) then return end
  if failed == 0 then hand_over_end(parent, 'SUCCESS', '')
  else hand_over_end(parent, h[4] or 'FAILURE', h[5] or 'Array Child Job failed') end
end

-- The state of a job, also of a child before there is a record of it; nil: there is no such job.
local function state_of(id)
  local state = redis.call('HGET', K.job(id), 'state')
  local parent, index = string.match(id, '^(.+):(%d+)$')
  if state or not parent then return state end
  local h = redis.call('HMGET', K.job(parent), 'array', 'state', 'ending')
  if not h[1] or num(tonumber(index)) ~= index or tonumber(index) >= tonumber(h[1]) then return nil end
  if h[2] == 'SUCCEEDED' then return 'SUCCEEDED' end
  return (h[2] == 'FAILED' or h[3]) and 'FAILED' or 'SUBMITTED'        -- refused at the door: none will come
end
