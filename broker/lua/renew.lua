-- renew(node, lease ms, node's fields (JSON object of strings), id, token, id, token, …) -> {id, what, reason, …}
-- Beats for the node and renews all of its leases. what: "lost" when the token is stale, "cancel" when the job is to be
-- stopped; of a member of a gang also "halt" when it is to be stopped and given up, "go" (reason: the main node's address)
-- when it may start. Keys: nodes, node, leases, job.
register('renew', function(_, argv)
  local node, lease, t, out = argv[1], tonumber(argv[2]), now(), {}
  redis.call('ZADD', K.nodes, num(t), node)
  local fields = {}
  for k, v in pairs(cjson.decode(argv[3])) do fields[#fields + 1] = k; fields[#fields + 1] = v end
  if #fields > 0 then redis.call('HSET', K.node(node), unpack(fields)) end
  for i = 4, #argv, 2 do
    local h = redis.call('HMGET', K.job(argv[i]), 'token', 'cancel', 'halt', 'go', 'state')
    if h[1] ~= argv[i + 1] then
      out[#out + 1] = argv[i]; out[#out + 1] = 'lost'; out[#out + 1] = ''
    else
      redis.call('ZADD', K.leases, num(t + lease), argv[i])
      local what = h[2] and 'cancel' or h[3] and 'halt' or h[4] and h[5] == 'STARTING' and 'go'
      if what then out[#out + 1] = argv[i]; out[#out + 1] = what; out[#out + 1] = h[2] or h[3] or h[4] end
    end
  end
  return out
end)

-- leave(node) -> 1: a node that holds nothing any more goes for good. 0: it still holds jobs.
register('leave', function(_, argv)
  if redis.call('SCARD', K.node_jobs(argv[1])) > 0 then return 0 end
  redis.call('ZREM', K.nodes, argv[1])
  redis.call('ZREM', K.reservations, argv[1])
  redis.call('DEL', K.node(argv[1]))
  return 1
end)

-- held(node) -> {{id, token, attempt, doc, queue, created ms, interruptions, cancel reason or '', started ms or ''}, …},
-- or of a member of a gang as `claim` answers it.
-- What a restarted node may take up again.
register('held', function(_, argv)
  local out = {}
  for _, id in ipairs(redis.call('SMEMBERS', K.node_jobs(argv[1]))) do
    local h = redis.call('HMGET', K.job(id), 'token', 'used', 'doc', 'cancel', 'node', 'started', 'queue', 'created',
      'interruptions', 'member_of')
    if h[10] then
      out[#out + 1] = member_row(id, argv[1])
    elseif h[1] and h[5] == argv[1] then
      out[#out + 1] = {id, h[1], (tonumber(h[2]) or 0) + 1, h[3] or doc_of(id), h[7], h[8], tonumber(h[9]) or 0,
        h[4] or '', h[6] or ''}
    end
  end
  return out
end)
