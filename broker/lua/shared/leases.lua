-- Leases that lapse.

local INTERRUPTIONS = 10         -- where the record does not say: a job that kills its nodes must not go round for ever

-- Why a job that has lost its node is not tried again, or nil. infra: how many interruptions it may have, -1 when a
-- rule of its own ends it.
local function too_often(infra, interruptions)
  local most = tonumber(infra or INTERRUPTIONS)
  if most < 0 then return 'its node was lost, and a rule of evaluate_on_exit ends the job for that' end
  if interruptions > most then
    return 'interrupted ' .. interruptions .. ' times, and infrastructure_retries is ' .. most ..
      ': its node was lost once more; does it bring nodes down?'
  end
end

-- Lapsed leases back to the front, without using up an attempt. When nobody has looked for half a lease (Redis or
-- the yard was down, or the clock jumped), nodes had no chance to renew either: every lease gets one more period.
local function reap(lease, limit)
  local t, last = now(), tonumber(redis.call('GET', K.reaper) or 0)
  redis.call('SET', K.reaper, num(t))
  if t - last > lease / 2 or t < last then
    for _, id in ipairs(redis.call('ZRANGE', K.leases, 0, -1)) do
      redis.call('ZADD', K.leases, num(t + lease), id)
    end
    return {}
  end
  local ids = redis.call('ZRANGEBYSCORE', K.leases, '-inf', num(t), 'LIMIT', 0, limit)
  for _, id in ipairs(ids) do
    local h = redis.call('HMGET', K.job(id), 'node', 'token', 'started', 'infra', 'member_of')
    if h[2] and h[5] then
      lose_member(id, h[5], h[1], t, too_often)
    elseif h[2] then
      redis.call('HINCRBY', K.job(id), 'losses', 1)
      local interruptions = redis.call('HINCRBY', K.job(id), 'interruptions', 1)
      count_spot(id, h[1])
      add_attempt(id, cjson.encode({node = h[1], started = h[3] and tonumber(h[3]) or cjson.null, ended = t,
        exit_code = cjson.null, counted = false, reason = 'Host ' .. h[1] .. ' lost: its lease lapsed.',
        status_reason = 'Host EC2 (instance ' .. h[1] .. ') lost: its lease lapsed.'}))
      restore(id, h[1], too_often(h[4], interruptions))
    else
      redis.call('ZREM', K.leases, id)
    end
  end
  return ids
end
