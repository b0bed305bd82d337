-- intake(message, message, …) -> {number taken from the lists, n, …}: the nth message (from 0) was left in its list
-- A message is 17 arguments: list, raw, kind, id, queue, priority, mc, mem, gpu, disk, eta ms, expires ms, chord key,
-- clear fields (JSON object of strings), sealed document, dependencies (JSON [[id, 1 when any end will do,
-- else 0], …] or ''), patient 0 or 1: left in its list while one that it depends on is not known.
--   kind "job": runs when it fits; "end": the reason why it fails at the door stands in its clear fields; "dead": no
--   job can be made of it; why stands there too, and the document is the message, sealed, in base64.
-- Keys: the producers' lists, job, jobs, seq, cancelled, class, heads, counts, demands, delayed, expiring, blocked,
-- dependants, unspawned, outbox, dead, consumable, the shares'.
-- Refused when Redis is out of memory: the messages then stay where they are.
local WIDTH = 17

-- Whose a job is, also a child before there is a record of it; '' the yard's own.
local function tenant_of(id)
  local h = redis.call('HMGET', K.job(id), 'state', 'tenant')
  local parent = not h[1] and string.match(id, '^(.+):%d+$')
  return h[2] or parent and redis.call('HGET', K.job(parent), 'tenant') or ''
end

-- The first that is no job, or one of another tenant: of those it learns neither that they are there nor how they end.
local function unknown(depends, tenant)
  for _, on in ipairs(depends) do
    if on[1] ~= '' and not (state_of(on[1]) and tenant_of(on[1]) == (tenant or '')) then return on[1] end
  end
end

-- What an array's children wait for is for them to wait for.
local function of_the_whole(depends)
  local whole = {}
  for _, on in ipairs(depends) do
    if not on[3] then whole[#whole + 1] = on end
  end
  return whole
end

-- Why it cannot be the array that it says, or nil.
local function mismatch(size, depends)
  for _, on in ipairs(depends) do
    if on[3] == 'N_TO_N' then
      local other = redis.call('HGET', K.job(on[1]), 'array')
      if other ~= size then
        return "job.depends_on = '" .. on[1] .. "': N_TO_N needs an array of the same size, " .. size .. '; that is ' ..
          (other and 'one of ' .. other or 'no array job')
      end
    end
  end
end

local function accept_array(id)
  redis.call('HSET', K.job(id), 'spawned', '0')
  if redis.call('DEL', K.cancelled(id .. ':*')) == 1 then redis.call('HSET', K.job(id), 'ahead', '1') end
end

-- It may run, when its time has come and those that it depends on have ended.
local function wait_or_go(m, score)
  local id, queue, job, t = m[4], m[5], K.job(m[4]), now()
  local depends = m[16] == '' and {} or cjson.decode(m[16])
  local size = redis.call('HGET', job, 'array')
  local wrong = size and mismatch(size, depends)
  if wrong then return decide_end(id, 'FAILURE', wrong) end
  local left, failed = depend(id, queue, of_the_whole(depends), score)
  if failed then return decide_end(id, 'FAILURE', 'Dependent Job failed: ' .. failed) end
  if size then accept_array(id) end
  if tonumber(m[12]) > 0 then
    redis.call('HSET', job, 'expires', m[12])
    redis.call('ZADD', K.expiring, m[12], id)
  end
  local later = tonumber(m[11]) > t
  if later then redis.call('HSET', job, 'eta', m[11]) end
  if left > 0 then
    become(id, 'PENDING')
  elseif later then
    delay(queue, id, tonumber(m[11]))
  else
    make_ready(queue, id)
  end
end

-- Whether a message is to stay in its list.
local function stays(m)
  local expires = tonumber(m[12])
  if m[3] ~= 'job' or m[16] == '' or m[17] ~= '1' or (expires > 0 and expires <= now()) then return false end
  if redis.call('EXISTS', K.job(m[4]), K.cancelled(m[4])) > 0 then return false end
  return unknown(cjson.decode(m[16]), cjson.decode(m[14]).tenant)
end

-- Why a job that is well in itself cannot be in this queue as things are, or nil.
local function not_welcome(queue, clear)
  if clear.share and not share_welcome(queue, clear.share) then
    return "job.share = '" .. clear.share .. "': queue \"" .. queue .. '" has ' .. SHARES ..
      ' active shares, and takes no more; use one of them, or wait until one has been idle for the decay window'
  end
  for _, token in ipairs(clear.tokens and tokens_of(clear.tokens) or {}) do
    local h = redis.call('HMGET', K.consumable(token[1]), 'type', 'total')
    if not h[1] then
      return "job.consumables = '" .. token[1] .. "': no such consumable resource; create it " ..
        '(`batchyard consumable create`), or see `batchyard consumable list`'
    elseif h[1] == 'REPLENISHABLE' and token[2] > tonumber(h[2]) then
      return 'job.consumables.' .. token[1] .. ' = ' .. num(token[2]) .. ': there are ' .. h[2] ..
        ' in all; ask for less, or add some (`batchyard consumable update`)'
    end
  end
end

local function score_of(m, clear)
  local places = tonumber(clear.array or 1)                        -- an array's children stand in a row
  local arrived = redis.call('INCRBY', K.sequence, places) - places + 1
  if clear.share then return num((9999 - tonumber(clear.sched or 0)) * SHARE_PRIORITY + arrived) end
  return num(tonumber(m[6]) * PRIORITY + arrived)
end

local function take(m)
  local list, raw, kind, id, queue = m[1], m[2], m[3], m[4], m[5]
  if kind == 'dead' then
    return dead_letter({at = now(), reason = cjson.decode(m[14]).reason, list = list, sealed = m[15]})
  end
  local job, t = K.job(id), now()
  if redis.call('EXISTS', job) == 1 then return end                 -- the same message once more
  local clear = cjson.decode(m[14])
  local score = score_of(m, clear)
  local missing = m[16] ~= '' and unknown(cjson.decode(m[16]), clear.tenant)    -- a job is not known to itself yet
  local fields = {}
  for k, v in pairs(clear) do fields[#fields + 1] = k; fields[#fields + 1] = v end
  become(id, 'SUBMITTED', 'queue', queue, 'score', score, 'created', num(t), 'doc', m[15],
    'mc', m[7], 'mem', m[8], 'gpu', m[9], 'disk', m[10], 'priority', m[6], unpack(fields))
  redis.call('ZADD', K.jobs, num(t), id)
  if m[13] ~= '' then redis.call('PERSIST', m[13]) end              -- the chord must outlive its slowest member
  if m[16] ~= '' then redis.call('HSET', job, 'depends', m[16]) end
  local cancelled, expires = redis.call('GET', K.cancelled(id)), tonumber(m[12])
  local refused = kind == 'job' and not_welcome(queue, clear)
  if cancelled then
    decide_end(id, 'REVOKED', cancelled)
    redis.call('DEL', K.cancelled(id))
  elseif kind == 'end' then
    decide_end(id, 'FAILURE', clear.reason)
  elseif expires > 0 and expires <= t then
    decide_end(id, 'REVOKED', 'expired')
  elseif missing then
    decide_end(id, 'FAILURE', "job.depends_on = '" .. missing .. "': no such job")
  elseif refused then
    decide_end(id, 'FAILURE', refused)
  else
    if clear.share then share_opened(queue, clear.share, id) end
    wait_or_go(m, score)
  end
end

register('intake', function(_, argv)
  local taken, left = 0, {}
  for i = 1, #argv, WIDTH do
    local m = {unpack(argv, i, i + WIDTH - 1)}
    if redis.call('LPOS', m[1], m[2], 'RANK', -1, 'MAXLEN', 1024) then
      if stays(m) then
        left[#left + 1] = (i - 1) / WIDTH
      else
        take(m)
        redis.call('LREM', m[1], -1, m[2])
        taken = taken + 1
      end
    end
  end
  return {taken, unpack(left)}
end, {})
