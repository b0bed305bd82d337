-- start(id, token, started ms, STARTED result or '', result expires s, id, …) -> for each 1, or 0 when the token is stale
-- Keys: job, result (and its channel).
local function start(id, token, started, result, expires)
  if redis.call('HGET', K.job(id), 'token') ~= token then return 0 end
  become(id, 'RUNNING', 'started', started)
  if result ~= '' then
    local key = K.result(id)
    if tonumber(expires) > 0 then redis.call('SET', key, result, 'EX', expires) else redis.call('SET', key, result) end
    redis.call('PUBLISH', key, result)
  end
  return 1
end

register('start', function(_, argv)
  local out = {}
  for i = 1, #argv, 5 do out[#out + 1] = start(unpack(argv, i, i + 4)) end
  return out
end)
