-- cancel(id, reason, terminate 0 or 1, keep s) -> "stored" (not taken in yet), "ended", "cancelled" (was waiting),
-- "running" (left alone: terminate is 0; it will not run again) or "stopping"
-- Keys: job, cancelled, class, heads, counts, demands, delayed, expiring, blocked, dependants, outbox; channels duty,
-- control.
register('cancel', function(_, argv)
  local id, reason, job = argv[1], argv[2], K.job(argv[1])
  local h = redis.call('HMGET', job, 'state', 'queue', 'class', 'node', 'ending')
  if not h[1] then
    redis.call('SET', K.cancelled(id), reason, 'EX', argv[4])
    return 'stored'
  end
  if h[1] == 'SUCCEEDED' or h[1] == 'FAILED' or h[5] then return 'ended' end
  if h[1] == 'STARTING' or h[1] == 'RUNNING' then
    if argv[3] ~= '1' and h[1] == 'RUNNING' then
      redis.call('HSETNX', job, 'revoked', reason)   -- it may end by itself, and is not run again
      return 'running'
    end
    redis.call('HSETNX', job, 'cancel', reason)
    redis.call('PUBLISH', K.control, h[4] .. ' ' .. id)
    return 'stopping'
  end
  decide_end(id, 'REVOKED', reason)
  withdraw(id, h[2], h[3])
  return 'cancelled'
end, {'allow-oom'})
