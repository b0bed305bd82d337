-- settle(id, token, state, fields (JSON object of strings), attempt (JSON), retention s, effects …)
--   -> 1 written, 2 this same call had been written before, 0 the token is stale: nothing is written
-- Keys: job, node_jobs, leases, expiring, outbox, dead, those of the effects, dependants and those of their moves; what
-- the job held: holds, consumable, gates, policies, the shares'.
register('settle', function(_, argv)
  local id, token, job = argv[1], argv[2], K.job(argv[1])
  local h = redis.call('HMGET', job, 'token', 'settled', 'node')
  if h[2] == token then return 2 end
  if h[1] ~= token then return 0 end
  local fields = {'settled', token}
  for k, v in pairs(cjson.decode(argv[4])) do fields[#fields + 1] = k; fields[#fields + 1] = v end
  apply(argv, 7)
  add_attempt(id, argv[5])
  end_record(id, argv[3], fields, argv[6])
  unlease(id, h[3])
  return 1
end)

-- giveback(id, token, counter ('used', 'interruptions' or ''), attempt (JSON) or '', fields (JSON), delay ms)
--   -> 1, 2 (had been done), 0 (stale)
-- Back to its old place in the queue, not before the delay is over: a retry (it has used an attempt), an interruption,
-- or a drain (neither).
-- Keys: job, node_jobs, leases, result, delayed, expiring, class, heads, counts, demands, outbox, and what it held.
register('giveback', function(_, argv)
  local id, token, job = argv[1], argv[2], K.job(argv[1])
  local h = redis.call('HMGET', job, 'token', 'returned', 'node')
  if h[2] == token then return 2 end
  if h[1] ~= token then return 0 end
  add_attempt(id, argv[4])
  if argv[3] ~= '' then redis.call('HINCRBY', job, argv[3], 1) end
  for k, v in pairs(cjson.decode(argv[5])) do redis.call('HSET', job, k, v) end
  redis.call('HSET', job, 'returned', token)
  restore(id, h[3], nil, tonumber(argv[6]))
  return 1
end)
