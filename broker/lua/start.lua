-- start(id, token, started ms, STARTED result or '', result expires s) -> 1, or 0 when the token is stale
-- Keys: job, result (and its channel).
register('start', function(_, argv)
  local job = K.job(argv[1])
  if redis.call('HGET', job, 'token') ~= argv[2] then return 0 end
  become(argv[1], 'RUNNING', 'started', argv[3])
  if argv[4] ~= '' then
    local key = K.result(argv[1])
    if tonumber(argv[5]) > 0 then redis.call('SET', key, argv[4], 'EX', argv[5]) else redis.call('SET', key, argv[4]) end
    redis.call('PUBLISH', key, argv[4])
  end
  return 1
end)
