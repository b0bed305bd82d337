-- fire(name, expected due ms or '', at ms, next due ms or '', next fire ms, id, list, message, overlap, retention ms,
--   note) -> 'fired', 'skipped' (its last job has not ended), 'advanced' (nothing was to be sent), 'early' or 'stale'
-- One time of a schedule: its message into a producers' list, and the schedule on to its next time. Only he who knows
-- the due time that stands here does it; so each time is dealt with once, however many call. Without an expected due
-- time it is sent now, and its times stay. id '': nothing is sent.
-- Keys: schedule, schedules_due, job, the producers' list.
-- Refused when Redis is out of memory: the time then stays due.
local function goes_on(id, sent, retention)
  if not id then return false end
  local state = redis.call('HGET', K.job(id), 'state')
  if state then return state ~= 'SUCCEEDED' and state ~= 'FAILED' end
  return now() - tonumber(sent) < retention    -- not taken in yet; after so long, its record has expired
end

register('fire', function(_, argv)
  local name, expected, id = argv[1], argv[2], argv[6]
  local schedule = K.schedule(name)
  local h = redis.call('HMGET', schedule, 'state', 'due', 'fire', 'last_id', 'sent')
  if not h[1] then return 'stale' end
  if expected ~= '' then
    if h[1] ~= 'ENABLED' or h[2] ~= expected then return 'stale' end
    if tonumber(h[3]) > now() then return 'early' end
  end
  local done = 'advanced'
  if id ~= '' and argv[9] == 'skip' and goes_on(h[4], h[5], tonumber(argv[10])) then
    done = 'skipped'
    redis.call('HINCRBY', schedule, 'skipped', 1)
  elseif id ~= '' then
    done = 'fired'
    redis.call('LPUSH', argv[7], argv[8])
    redis.call('HSET', schedule, 'last', argv[3], 'last_id', id, 'sent', num(now()))
  end
  redis.call('HSET', schedule, 'note', argv[11])
  if expected == '' then return done end
  if argv[4] ~= '' then
    redis.call('HSET', schedule, 'due', argv[4], 'fire', argv[5])
    redis.call('ZADD', K.schedules_due, argv[5], name)
  else
    redis.call('HDEL', schedule, 'due', 'fire')
    redis.call('ZREM', K.schedules_due, name)
  end
  return done
end, {})
