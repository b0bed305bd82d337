-- fire(name, expected due ms or '', at ms, next due ms or '', next fire ms, id, list, message, overlap, retention ms,
--   note, keep s) -> 'fired', 'skipped' (its last job has not ended), 'advanced' (nothing was to be sent), 'early' or 'stale'
-- One time of a schedule: its message into a producers' list, and the schedule on to its next time. Only he who knows
-- the due time that stands here does it; so each time is dealt with once, however many call. Without an expected due
-- time it is sent now, and its times stay; a last job that goes on stays the last one, so that `skip` and `replace` do
-- not forget it. id '': nothing is sent. keep: see cancel.
-- Keys: schedule, schedules_due, the producers' list, those of cancel.
-- Refused when Redis is out of memory: the time then stays due.
local NOT_TAKEN_IN = 600000      -- ms; without a record for so long, its message is lost or its record has expired

local function goes_on(id, sent, retention)
  if not id then return false end
  local state = redis.call('HGET', K.job(id), 'state')
  if state then return state ~= 'SUCCEEDED' and state ~= 'FAILED' end
  return now() - tonumber(sent) < math.min(retention, NOT_TAKEN_IN)
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
  local done, note, last = 'advanced', argv[11], h[4]
  local going = id ~= '' and goes_on(last, h[5], tonumber(argv[10]))
  if going and argv[9] == 'skip' then
    done, note = 'skipped', 'a time was skipped: job ' .. last .. ' has not ended'
    redis.call('HINCRBY', schedule, 'skipped', 1)
  elseif id ~= '' then
    done = 'fired'
    redis.call('LPUSH', argv[7], argv[8])
    if expected ~= '' or not going then
      redis.call('HSET', schedule, 'last', argv[3], 'last_id', id, 'sent', num(now()))
    end
    if argv[9] == 'replace' and last and last ~= id then
      cancel_job(last, 'schedule ' .. name .. ' replaces it', true, argv[12])
    end
  end
  redis.call('HSET', schedule, 'note', note)
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
