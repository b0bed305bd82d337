-- tick(lease ms, limit, queue, …) -> {reaped, due, expired, forgotten}
-- What time alone brings about, a bounded number a call.
-- Keys: reaper, leases, delayed, expiring, jobs, nodes, the shares', and those of the moves.
local function expire(limit)
  local ids = redis.call('ZRANGEBYSCORE', K.expiring, '-inf', num(now()), 'LIMIT', 0, limit)
  local n = 0
  for _, id in ipairs(ids) do
    local h = redis.call('HMGET', K.job(id), 'state', 'queue', 'class', 'ending')
    if (h[1] == 'RUNNABLE' or h[1] == 'PENDING') and not h[4] then
      decide_end(id, 'REVOKED', 'expired')
      withdraw(id, h[2], h[3])
      n = n + 1
    end
    redis.call('ZREM', K.expiring, id)         -- one that runs has made it in time
  end
  return n
end

-- Records expire by themselves; their line in the list of all jobs goes here, oldest first. Old jobs that live on are
-- passed over: the next call looks behind them, until it has seen all.
local passed = 0
local function forget(limit)
  local n, ids = 0, redis.call('ZRANGE', K.jobs, passed, passed + limit - 1)
  if #ids == 0 and passed > 0 then passed, ids = 0, redis.call('ZRANGE', K.jobs, 0, limit - 1) end
  for _, id in ipairs(ids) do
    if redis.call('EXISTS', K.job(id)) == 0 then n = n + redis.call('ZREM', K.jobs, id) end
  end
  passed = #ids < limit and 0 or passed + #ids - n
  return n
end

register('tick', function(_, argv)
  local limit, dues = tonumber(argv[2]), 0
  for i = 3, #argv do
    dues = dues + due(argv[i], limit)
    forget_shares(argv[i], limit)
  end
  return {#reap(tonumber(argv[1]), limit), dues, expire(limit), forget(limit)}
end)
