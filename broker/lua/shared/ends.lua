-- How a job ends.

local function end_record(id, state, fields, retention)
  local job = K.job(id)
  become(id, state, unpack(fields))
  redis.call('HDEL', job, 'token', 'class', 'ending')
  redis.call('ZREM', K.expiring, id)
  redis.call('EXPIRE', job, retention)
  local gang = redis.call('HGET', job, 'gang')
  if gang then gang_over(id, tonumber(gang), retention) end
  if release(id, state == 'SUCCEEDED') > 0 then
    redis.call('HSET', K.outbox, 'deps:' .. id, cjson.encode({id = id, state = state}))
    redis.call('PUBLISH', K.duty, 'outbox')
  end
end

-- An end is decided for a job that no node holds: it waits for nothing any more.
local function withdraw(id, queue, class)
  unreserve(id)
  if class then index_remove(queue, class, id) else gang_remove(queue, id) end
  redis.call('ZREM', K.delayed(queue), id)
  redis.call('ZREM', K.expiring, id)
  unblock(id, queue)
end

-- See cancel.lua, which says what it answers. keep: seconds.
local function cancel_job(id, reason, terminate, keep)
  id = redis.call('HGET', K.job(id), 'member_of') or id     -- one node's part of a job stands for the whole
  local job = K.job(id)
  local h = redis.call('HMGET', job, 'state', 'queue', 'class', 'node', 'ending', 'gang', 'main')
  if not h[1] then
    redis.call('SET', K.cancelled(id), reason, 'EX', keep)
    return 'stored'
  end
  if h[1] == 'SUCCEEDED' or h[1] == 'FAILED' or h[5] then return 'ended' end
  if h[1] == 'STARTING' or h[1] == 'RUNNING' then
    if not terminate and h[1] == 'RUNNING' then
      redis.call('HSETNX', job, 'revoked', reason)   -- it may end by itself, and is not run again
      return 'running'
    end
    redis.call('HSETNX', job, 'cancel', reason)
    if h[6] then
      cancel_gang(id, tonumber(h[6]), tonumber(h[7]), reason)
    else
      redis.call('PUBLISH', K.control, h[4] .. ' ' .. id)
    end
    return 'stopping'
  end
  decide_end(id, 'REVOKED', reason)
  withdraw(id, h[2], h[3])
  return 'cancelled'
end
