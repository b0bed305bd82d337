-- configure(expected or '', configuration (JSON), waits (JSON object "<queue> <environment>" -> ms), events 0 or 1)
--   -> 1; 0: what stands there is not what was expected, and stays
-- The yard's configuration, and how long nodes of later environments leave a job to those of earlier ones;
-- whether changes of states are kept as events.
-- Keys: config, overflow, events, events_off; channels duty, control.
register('configure', function(_, argv)
  if argv[1] ~= '' and redis.call('GET', K.config) ~= argv[1] then return 0 end
  local fields = {}
  for k, v in pairs(cjson.decode(argv[3])) do fields[#fields + 1] = k; fields[#fields + 1] = v end
  redis.call('SET', K.config, argv[2])
  redis.call('DEL', K.overflow)
  if #fields > 0 then redis.call('HSET', K.overflow, unpack(fields)) end
  if argv[4] == '1' then
    redis.call('DEL', K.events_off)
  else
    redis.call('SET', K.events_off, '1')
    redis.call('DEL', K.events)
  end
  redis.call('PUBLISH', K.duty, 'config')
  redis.call('PUBLISH', K.control, '* config')
  return 1
end)
