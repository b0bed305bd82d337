-- Moves of one job.

-- quiet: one that is new, and the caller wakes the nodes.
local function make_ready(queue, id, quiet)
  local h = redis.call('HMGET', K.job(id), 'mc', 'mem', 'gpu', 'disk', 'score', 'share', 'tokens', 'def', 'gpu_type', 'in',
    'spawned', 'gang', 'od', 'spot_lost')
  if h[11] then return open_array(queue, id) end
  local demand, share = {h[1], h[2], h[3], h[4]}, h[6]
  if share then share_opened(queue, share, id) end
  if h[12] then
    become(id, 'RUNNABLE', 'ready', num(now()))
    redis.call('HDEL', K.job(id), 'retry_at')
    return gang_add(queue, id, h[5])
  end
  local asks = asks_of(h[7], h[8], h[9], h[10], h[13] and tonumber(h[14] or 0) >= tonumber(h[13]))
  local place = classify(share and queue .. '/' .. share or queue, demand, asks)
  if share then place = share .. '/' .. place end
  become(id, 'RUNNABLE', 'class', place, 'ready', num(now()))
  index_add(queue, place, id, h[5], table.concat(demand, ',') .. asks)
  if quiet then return end
  redis.call('HDEL', K.job(id), 'retry_at')
  redis.call('PUBLISH', K.wake, queue)
end

-- An end that is decided, of a job that no node holds. Celery state: FAILURE or REVOKED. Python has still to record
-- what follows a job; nothing follows an array's child, which ends in its turn; a parent ends with its children.
local function decide_end(id, celery_state, reason)
  if array_of(id) then
    redis.call('HSET', K.job(id), 'ending', celery_state, 'reason', reason)
    redis.call('RPUSH', K.child_ends, id)
    redis.call('HSET', K.outbox, 'children', '{}')
    redis.call('PUBLISH', K.duty, 'outbox')
  elseif redis.call('HEXISTS', K.job(id), 'spawned') == 1 then
    close_array(id, celery_state, reason, false)
  else
    hand_over_end(id, celery_state, reason)
  end
end

local function add_attempt(id, attempt)
  if attempt == '' then return end
  local old = redis.call('HGET', K.job(id), 'attempts')
  redis.call('HSET', K.job(id), 'attempts', old and (old .. '\n' .. attempt) or attempt)
end

-- A run has ended with its machine, or for what was wrong with that: of a job that is to leave spot machines some time.
local function count_spot(id, node)
  if redis.call('HEXISTS', K.job(id), 'od') == 0 then return end
  local environment = redis.call('HGET', K.node(node), 'environment')
  if environment and redis.call('SISMEMBER', K.spot, environment) == 1 then
    redis.call('HINCRBY', K.job(id), 'spot_lost', 1)
  end
end

-- Waits for a time, and then for nothing else.
local function delay(queue, id, ms)
  redis.call('ZADD', K.delayed(queue), num(ms), id)
  become(id, 'PENDING')
end

-- Takes a leased job back to its old place in the index, at once or in some ms; one that was cancelled meanwhile ends
-- instead, as does one with a fatal reason.
local function restore(id, node, fatal, wait)
  local job = K.job(id)
  local h = redis.call('HMGET', job, 'queue', 'cancel', 'expires', 'revoked', 'started')
  local revoked = h[2] or h[4]
  redis.call('HDEL', job, 'token', 'node', 'started')
  redis.call('DEL', K.result(id))            -- else AsyncResult.state stays STARTED
  if revoked then
    decide_end(id, 'REVOKED', revoked)
  elseif fatal then
    decide_end(id, 'FAILURE', fatal)
  else
    if h[3] then redis.call('ZADD', K.expiring, h[3], id) end                -- it waits again
    if wait and wait > 0 then
      redis.call('HSET', job, 'retry_at', num(now() + wait))
      delay(h[1], id, now() + wait)
    else
      make_ready(h[1], id)
    end
  end
  unlease(id, node, not h[5])
end

-- Jobs whose eta has come, into the index.
local function due(queue, limit)
  local ids = redis.call('ZRANGEBYSCORE', K.delayed(queue), '-inf', num(now()), 'LIMIT', 0, limit)
  for _, id in ipairs(ids) do
    if redis.call('EXISTS', K.job(id)) == 1 then make_ready(queue, id) end
    redis.call('ZREM', K.delayed(queue), id)
  end
  return #ids
end
