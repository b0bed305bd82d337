-- configure(expected or '', configuration (JSON), waits (JSON object "<queue> <environment>" -> ms)) -> 1; 0: what
-- stands there is not what was expected, and stays
-- The yard's configuration, and how long nodes of later environments leave a job to those of earlier ones.
-- Keys: config, overflow; channels duty, control.
register('configure', function(_, argv)
  if argv[1] ~= '' and redis.call('GET', K.config) ~= argv[1] then return 0 end
  local fields = {}
  for k, v in pairs(cjson.decode(argv[3])) do fields[#fields + 1] = k; fields[#fields + 1] = v end
  redis.call('SET', K.config, argv[2])
  redis.call('DEL', K.overflow)
  if #fields > 0 then redis.call('HSET', K.overflow, unpack(fields)) end
  redis.call('PUBLISH', K.duty, 'config')
  keep_events(cjson.decode(argv[2]).events)
  redis.call('PUBLISH', K.control, '* config')
  return 1
end)
