-- settle(id, token, state, fields (JSON object of strings), attempt (JSON), retention s, effects …)
--   -> 1 written, 2 this same call had been written before, 0 the token is stale: nothing is written
-- Keys: job, node_jobs, leases, expiring, outbox, dead, and those of the effects.
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

-- giveback(id, token, counted 0 or 1, attempt (JSON) or '', fields (JSON)) -> 1, 2 (had been done), 0 (stale)
-- Back to its old place in the queue: a retry (counted) or a drain (not counted).
-- Keys: job, node_jobs, leases, result, class, heads, counts, demands, outbox.
register('giveback', function(_, argv)
  local id, token, job = argv[1], argv[2], K.job(argv[1])
  local h = redis.call('HMGET', job, 'token', 'returned', 'node')
  if h[2] == token then return 2 end
  if h[1] ~= token then return 0 end
  add_attempt(id, argv[4])
  if argv[3] == '1' then redis.call('HINCRBY', job, 'used', 1) end
  for k, v in pairs(cjson.decode(argv[5])) do redis.call('HSET', job, k, v) end
  redis.call('HSET', job, 'returned', token)
  restore(id, h[3])
  return 1
end)
