-- intake(message, message, …) -> number taken from the lists
-- A message is 15 arguments: list, raw, kind, id, queue, priority, mc, mem, gpu, disk, eta ms, expires ms, chord key,
-- clear fields (JSON object of strings), sealed document or reason.
--   kind "job": runs when it fits; "end": the reason why it fails at the door stands in its clear fields; "dead": no
--   job can be made of it, the last argument is the reason.
-- Keys: the producers' lists, job, jobs, seq, cancelled, class, heads, counts, demands, delayed, expiring, outbox, dead.
-- Refused when Redis is out of memory: the messages then stay where they are.
local WIDTH = 15

local function take(m)
  local list, raw, kind, id, queue = m[1], m[2], m[3], m[4], m[5]
  if kind == 'dead' then
    return dead_letter({at = now(), reason = m[15], list = list, raw = raw})
  end
  local job, t = K.job(id), now()
  if redis.call('EXISTS', job) == 1 then return end                 -- the same message once more
  local score = num(tonumber(m[6]) * PRIORITY + redis.call('INCR', K.sequence))
  local clear = cjson.decode(m[14])
  local fields = {}
  for k, v in pairs(clear) do fields[#fields + 1] = k; fields[#fields + 1] = v end
  redis.call('HSET', job, 'state', 'SUBMITTED', 'queue', queue, 'score', score, 'created', num(t), 'doc', m[15],
    'mc', m[7], 'mem', m[8], 'gpu', m[9], 'disk', m[10], 'priority', m[6], unpack(fields))
  redis.call('ZADD', K.jobs, num(t), id)
  if m[13] ~= '' then redis.call('PERSIST', m[13]) end              -- the chord must outlive its slowest member
  local cancelled, expires = redis.call('GET', K.cancelled(id)), tonumber(m[12])
  if cancelled then
    decide_end(id, 'REVOKED', cancelled)
    redis.call('DEL', K.cancelled(id))
  elseif kind == 'end' then
    decide_end(id, 'FAILURE', clear.reason)
  elseif expires > 0 and expires <= t then
    decide_end(id, 'REVOKED', 'expired')
  else
    if expires > 0 then
      redis.call('HSET', job, 'expires', m[12])
      redis.call('ZADD', K.expiring, m[12], id)
    end
    if tonumber(m[11]) > t then
      redis.call('HSET', job, 'state', 'PENDING', 'eta', m[11])
      redis.call('ZADD', K.delayed(queue), m[11], id)
    else
      make_ready(queue, id)
    end
  end
end

register('intake', function(_, argv)
  local taken = 0
  for i = 1, #argv, WIDTH do
    local m = {unpack(argv, i, i + WIDTH - 1)}
    if redis.call('LPOS', m[1], m[2], 'RANK', -1, 'MAXLEN', 1024) then
      take(m)
      redis.call('LREM', m[1], -1, m[2])
      taken = taken + 1
    end
  end
  return taken
end, {})
