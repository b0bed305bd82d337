local MOST = 2 ^ 31 - 1

-- consumable_create(name, type, total) -> 1, 0 when there is one of this name
-- Keys: consumables, consumable.
-- Refused when Redis is out of memory.
register('consumable_create', function(_, argv)
  local key = K.consumable(argv[1])
  if redis.call('EXISTS', key) == 1 then return 0 end
  local t = num(now())
  redis.call('HSET', key, 'type', argv[2], 'total', argv[3], 'held', '0', 'jobs', '0', 'created', t, 'changed', t)
  redis.call('SADD', K.consumables, argv[1])
  gate_opened('')
  return 1
end, {})

-- consumable_update(name, SET, ADD or REMOVE, quantity, client token or '', keep token s) -> total
-- nil: there is none; {-1, total}: it would be less than none, or too many. A client token's repeat gets the first answer.
-- Keys: consumable, consumable_token, gates; channel wake.
register('consumable_update', function(_, argv)
  local name, how, n = argv[1], argv[2], tonumber(argv[3])
  local key, repeats = K.consumable(name), K.consumable_token(name .. ':' .. argv[4])
  local total = tonumber(redis.call('HGET', key, 'total'))
  if not total then return nil end
  local before = argv[4] ~= '' and redis.call('GET', repeats)
  if before then return tonumber(before) end
  local after = how == 'SET' and n or how == 'ADD' and total + n or total - n
  if after < 0 or after > MOST then return {-1, total} end
  total = after
  redis.call('HSET', key, 'total', num(total), 'changed', num(now()))
  if argv[4] ~= '' then redis.call('SET', repeats, num(total), 'EX', argv[5]) end
  gate_opened('')
  return total
end)

-- consumable_delete(name) -> how many jobs hold some of it, when it stays for them; 0: it is gone; nil: there is none
-- Keys: consumables, consumable.
register('consumable_delete', function(_, argv)
  local key = K.consumable(argv[1])
  if redis.call('EXISTS', key) == 0 then return nil end
  local jobs = tonumber(redis.call('HGET', key, 'jobs'))
  if jobs > 0 then return jobs end
  redis.call('DEL', key)
  redis.call('SREM', K.consumables, argv[1])
  return 0
end)
