-- How a job ends.

local FEW = 4                    -- dependants of an array's child that are let go in one call: children end in chunks

-- A child's record is kept as long as its parent's, see array.lua. releases: how many dependants are let go in this
-- call, if not as many as one call may.
local function end_record(id, state, fields, retention, releases)
  local job, parent = K.job(id), array_of(id)
  become(id, state, unpack(fields))
  redis.call('HDEL', job, 'token', 'class', 'ending')
  local h = redis.call('HMGET', job, 'queue', 'share', 'gang', 'blobs')
  if h[4] then settle_blobs(id, h[4]) end
  if h[2] then share_closed(h[1], h[2], id) end
  redis.call('ZREM', K.expiring, id)
  if not parent then redis.call('EXPIRE', job, retention) end
  if h[3] then gang_over(id, tonumber(h[3]), retention) end
  if release(id, state == 'SUCCEEDED', parent and math.min(FEW, AT_ONCE) or releases) > 0 then
    redis.call('HSET', K.outbox, 'deps:' .. id, cjson.encode({id = id, state = state}))
    redis.call('PUBLISH', K.duty, 'outbox')
  end
  if parent then child_ended(parent) end
end

-- The parent has ended: its children's records vanish when its own does. See array.lua.
local function keep_children(id, retention)
  local spawned = redis.call('HGET', K.job(id), 'spawned')
  if not spawned then return end
  redis.call('HSET', K.outbox, 'array:' .. id,
    cjson.encode({id = id, children = tonumber(spawned), at = num(now() + 1000 * tonumber(retention)), done = 0}))
end

-- A child that no node holds.
local function end_child(id, celery_state, reason)
  local fields = {'reason', reason, 'ended', num(now())}
  if celery_state == 'REVOKED' then fields[5] = 'cancel'; fields[6] = reason end
  end_record(id, 'FAILED', fields)
end

-- An end is decided for a job that no node holds: it waits for nothing any more.
local function withdraw(id, queue, class)
  unreserve(id)
  if class then index_remove(queue, class, id) else gang_remove(queue, id) end
  redis.call('ZREM', K.delayed(queue), id)
  redis.call('ZREM', K.expiring, id)
  unblock(id, queue)
end

-- One without a record: not taken in yet, or a child that has not been spawned. Its array is told to look for such.
local function cancel_ahead(id, reason, keep)
  local parent = string.match(id, '^(.+):%d+$')
  local state = state_of(id)
  if state == 'FAILED' or state == 'SUCCEEDED' then return 'ended' end
  redis.call('SET', K.cancelled(id), reason, 'EX', keep)
  if state then redis.call('HSET', K.job(parent), 'ahead', '1')
  elseif parent then redis.call('SET', K.cancelled(parent .. ':*'), '1', 'EX', keep) end
  return state and 'cancelled' or 'stored'
end

local function cancel_array(id, h, reason, terminate)
  local held = tonumber(h[7] or 0) + tonumber(h[8] or 0)
  local known = not close_array(id, 'REVOKED', reason, terminate)
  withdraw(id, h[2])
  if held == 0 then return known and 'ended' or 'cancelled' end
  return terminate and 'stopping' or 'running'
end

-- One node's part of a job stands for the whole, also before it is placed.
local function whole_of(id)
  local gang, index = string.match(id, '^(.+)#(%d+)$')
  local count = gang and redis.call('HGET', K.job(gang), 'gang')
  return count and tonumber(index) < tonumber(count) and gang or id
end

-- See cancel.lua, which says what it answers. keep: seconds.
local function cancel_job(id, reason, terminate, keep)
  id = redis.call('HGET', K.job(id), 'member_of') or whole_of(id)
  local job = K.job(id)
  local h = redis.call('HMGET', job, 'state', 'queue', 'class', 'node', 'ending', 'spawned', 'n:STARTING', 'n:RUNNING',
    'gang', 'main')
  if not h[1] then return cancel_ahead(id, reason, keep) end
  if h[1] == 'SUCCEEDED' or h[1] == 'FAILED' or h[5] then return 'ended' end
  if h[6] then return cancel_array(id, h, reason, terminate) end
  if h[1] == 'STARTING' or h[1] == 'RUNNING' then
    if not terminate and h[1] == 'RUNNING' then
      redis.call('HSETNX', job, 'revoked', reason)   -- it may end by itself, and is not run again
      return 'running'
    end
    redis.call('HSETNX', job, 'cancel', reason)
    if h[9] then
      cancel_gang(id, tonumber(h[9]), tonumber(h[10]), reason)
    else
      redis.call('PUBLISH', K.control, h[4] .. ' ' .. id)
    end
    return 'stopping'
  end
  decide_end(id, 'REVOKED', reason)
  withdraw(id, h[2], h[3])
  return 'cancelled'
end
