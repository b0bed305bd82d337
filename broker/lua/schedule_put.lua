-- schedule_put(name, sealed schedule, origin, about, state, due ms or '', fire ms, replace 0 or 1, keep state 0 or 1,
--   keep due 0 or 1) -> '', or the origin of the one that is there and stays
-- A schedule, new or changed; `keep`: what stands there stays, if there is one. One of another origin is not replaced.
-- Keys: schedule, schedules, schedules_due; channel duty.
-- Refused when Redis is out of memory.
register('schedule_put', function(_, argv)
  local name, schedule = argv[1], K.schedule(argv[1])
  local there = redis.call('HMGET', schedule, 'origin', 'state', 'due', 'fire')
  if there[1] and (argv[8] ~= '1' or there[1] ~= argv[3]) then return there[1] end
  local state, due, fire = argv[5], argv[6], argv[7]
  if there[1] and argv[9] == '1' then state = there[2] end
  if there[1] and argv[10] == '1' then due, fire = there[3] or '', there[4] or '' end
  redis.call('HSET', schedule, 'doc', argv[2], 'origin', argv[3], 'about', argv[4], 'state', state, 'note', '')
  if due ~= '' then redis.call('HSET', schedule, 'due', due, 'fire', fire)
  else redis.call('HDEL', schedule, 'due', 'fire') end
  redis.call('SADD', K.schedules, name)
  if due ~= '' and state == 'ENABLED' then redis.call('ZADD', K.schedules_due, fire, name)
  else redis.call('ZREM', K.schedules_due, name) end
  redis.call('PUBLISH', K.duty, 'schedules')
  return ''
end, {})
