-- finish(id, state, fields (JSON object of strings), retention s, effects …) -> 1, or 0 when another call did it
-- A job that ends outside a node: the entry that decided so, the record and what follows, all or nothing.
-- Keys: outbox, job, expiring, dead, those of the effects, dependants and those of their moves; an array's children are
-- then kept as long as their parent.
register('finish', function(_, argv)
  local field, fields = 'end:' .. argv[1], {}
  if redis.call('HEXISTS', K.outbox, field) == 0 then return 0 end
  for k, v in pairs(cjson.decode(argv[3])) do fields[#fields + 1] = k; fields[#fields + 1] = v end
  apply(argv, 5)
  end_record(argv[1], argv[2], fields, argv[4])
  keep_children(argv[1], argv[4])
  redis.call('HDEL', K.outbox, field)
  return 1
end)

-- deliver(field, effects …) -> 1, or 0 when another call did it. A completed chord's body.
-- Keys: outbox, dead, and those of the effects.
register('deliver', function(_, argv)
  if redis.call('HEXISTS', K.outbox, argv[1]) == 0 then return 0 end
  apply(argv, 2)
  redis.call('HDEL', K.outbox, argv[1])
  return 1
end)

-- release(id) -> how many still wait for this job, which has ended; call again until none does
-- Keys: outbox, dependants, and those of their moves.
register('release', function(_, argv)
  local field = 'deps:' .. argv[1]
  local entry = redis.call('HGET', K.outbox, field)
  if not entry then return 0 end
  local left = release(argv[1], cjson.decode(entry).state == 'SUCCEEDED')
  if left == 0 then redis.call('HDEL', K.outbox, field) end
  return left
end)
