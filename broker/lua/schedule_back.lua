-- schedule_back(name, expected due ms or '', due ms or '', fire ms) -> 1, 0 when it has changed meanwhile
-- Another next time, after the clock went back; without one, that which stands there is looked at when it comes.
-- Keys: schedule, schedules_due.
register('schedule_back', function(_, argv)
  local name, schedule = argv[1], K.schedule(argv[1])
  local h = redis.call('HMGET', schedule, 'state', 'due', 'fire')
  if not h[1] or (h[2] or '') ~= argv[2] then return 0 end
  local fire = h[3]
  if argv[3] ~= '' then
    fire = argv[4]
    redis.call('HSET', schedule, 'due', argv[3], 'fire', fire)
  end
  if fire and h[1] == 'ENABLED' then redis.call('ZADD', K.schedules_due, fire, name) end
  return 1
end)
