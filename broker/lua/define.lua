-- define(name, token, sealed template, image, jobs at once or '') -> revision
-- A new revision of a job definition, numbered from 1 on; no number is given twice. A repeat, known by its token, gets
-- the answer of the first call.
-- The limit of the last one holds for all jobs of the definition that have one.
-- Keys: definitions, definitions_active, definitions_version, definition, limits, gates; channel wake.
-- Refused when Redis is out of memory.
local LOOK_BACK = 16                           -- revisions that others may have registered before the repeat

register('define', function(_, argv)
  local name, token = argv[1], argv[2]
  local last = tonumber(redis.call('HGET', K.definitions, name) or 0)
  for n = last, math.max(1, last - LOOK_BACK + 1), -1 do
    if redis.call('HGET', K.definition(name .. ':' .. num(n)), 'token') == token then return n end
  end
  local revision = num(last + 1)
  redis.call('HSET', K.definition(name .. ':' .. revision), 'doc', argv[3], 'image', argv[4], 'state', 'ACTIVE',
    'created', num(now()), 'token', token)
  redis.call('HSET', K.definitions_active, name, revision)
  redis.call('HSET', K.definitions, name, revision)
  if (argv[5] or '') ~= '' then redis.call('HSET', K.limits, name, argv[5]) else redis.call('HDEL', K.limits, name) end
  gate_opened('')
  local t = redis.call('TIME')
  redis.call('SET', K.definitions_version, t[1] .. '.' .. t[2])
  return last + 1
end, {})
