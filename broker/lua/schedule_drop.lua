-- schedule_drop(name, origin) -> '' when it is gone, else the origin of the one that stays; nil: there is none
-- Jobs that it sent go on.
-- Keys: schedule, schedules, schedules_due.
register('schedule_drop', function(_, argv)
  local name, schedule = argv[1], K.schedule(argv[1])
  local origin = redis.call('HGET', schedule, 'origin')
  if not origin then return nil end
  if origin ~= argv[2] then return origin end
  redis.call('ZREM', K.schedules_due, name)
  redis.call('SREM', K.schedules, name)
  redis.call('DEL', schedule)
  return ''
end)
