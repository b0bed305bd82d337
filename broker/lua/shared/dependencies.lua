-- A job that waits for others is PENDING and stands in its queue's `blocked`. Its record counts them in `left` and has
-- a field `on:<id>` for each, 1 when any end will do, else 0; each of them has it among its `dependants`.

local AT_ONCE = 64               -- dependants that are let go in one call

-- depends: {{id, 1 when any end will do, else 0}, …}. -> how many are to be waited for, the first that has failed
local function depend(id, queue, depends, score)
  local open = {}
  for _, on in ipairs(depends) do
    local state = state_of(on[1])
    if (not state or state == 'FAILED') and on[2] == 0 then return 0, on[1] end
    if state and state ~= 'FAILED' and state ~= 'SUCCEEDED' then open[#open + 1] = on end
  end
  if #open == 0 then return 0 end
  redis.call('HSET', K.job(id), 'left', #open)
  for _, on in ipairs(open) do
    redis.call('HSET', K.job(id), 'on:' .. on[1], num(on[2]))
    redis.call('ZADD', K.dependants(on[1]), score, id)
  end
  redis.call('SADD', K.blocked(queue), id)
  return #open
end

-- Waits for no other job any more.
local function unblock(id, queue)
  if redis.call('SREM', K.blocked(queue), id) == 0 then return end
  for _, field in ipairs(redis.call('HKEYS', K.job(id))) do
    if string.sub(field, 1, 3) == 'on:' then
      redis.call('ZREM', K.dependants(string.sub(field, 4)), id)
      redis.call('HDEL', K.job(id), field)
    end
  end
  redis.call('HDEL', K.job(id), 'left')
end

-- One that a dependant waited for has ended, well or not.
local function depended_ended(id, parent, well)
  local job, field = K.job(id), 'on:' .. parent
  local h = redis.call('HMGET', job, field, 'queue', 'left', 'eta')
  if not h[1] then return end                -- it has ended meanwhile
  if not well and h[1] == '0' then
    decide_end(id, 'FAILURE', 'Dependent Job failed: ' .. parent)
    unblock(id, h[2])
  elseif tonumber(h[3]) > 1 then
    redis.call('HINCRBY', job, 'left', -1)
    redis.call('HDEL', job, field)
  else
    if h[4] and tonumber(h[4]) > now() then delay(h[2], id, tonumber(h[4])) else make_ready(h[2], id) end
    unblock(id, h[2])
  end
end

-- Some of those that waited for a job, the most urgent first. -> how many still wait
local function release(parent, well, most)
  local key = K.dependants(parent)
  for _, id in ipairs(redis.call('ZRANGE', key, 0, (most or AT_ONCE) - 1)) do
    depended_ended(id, parent, well)
    redis.call('ZREM', key, id)
  end
  return redis.call('ZCARD', key)
end
