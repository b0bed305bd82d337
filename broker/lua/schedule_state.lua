-- schedule_state(name, ENABLED or PAUSED) -> 1, 0 when there is no such schedule
-- A paused one keeps its due time, from which it catches up by its policy.
-- Keys: schedule, schedules_due; channel duty.
register('schedule_state', function(_, argv)
  local name, schedule = argv[1], K.schedule(argv[1])
  if redis.call('EXISTS', schedule) == 0 then return 0 end
  redis.call('HSET', schedule, 'state', argv[2])
  local fire = redis.call('HGET', schedule, 'fire')
  if fire and argv[2] == 'ENABLED' then redis.call('ZADD', K.schedules_due, fire, name)
  else redis.call('ZREM', K.schedules_due, name) end
  redis.call('PUBLISH', K.duty, 'schedules')
  return 1
end)
