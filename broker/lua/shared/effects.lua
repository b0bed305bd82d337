-- What follows a job.

local DEAD_LETTERS = 10000       -- kept; then the oldest goes for each that comes

local function dead_letter(entry)
  local number = redis.call('INCR', K.dead_sequence)
  redis.call('HSET', K.dead, number, cjson.encode(entry))
  redis.call('HDEL', K.dead, number - DEAD_LETTERS)
end

-- One part of a chord, in the keys and the form of Celery 5.7's own script, except that whoever completes the chord
-- takes it for good: .s is deleted (no worker can fire it again), .c says done, and the body waits in the outbox.
-- a = base, task id, value, ordered, index, chord_expires, group_expires, entry (JSON)
local function chord_part(a)
  local base, member = a[1], a[2] .. ':' .. a[5]
  local j, t, s, d, c = base .. '.j', base .. '.t', base .. '.s', base .. '.d', base .. '.c'
  if redis.call('GET', c) == 'done' then return end
  if redis.call('SISMEMBER', d, member) == 0 then
    if a[4] == '1' then redis.call('ZADD', j, a[5], a[3]) else redis.call('RPUSH', j, a[3]) end
    redis.call('SADD', d, member)
  end
  local n = a[4] == '1' and redis.call('ZCARD', j) or redis.call('LLEN', j)
  if tonumber(a[6]) > 0 then
    for _, key in ipairs({j, t, s, d}) do redis.call('EXPIRE', key, a[6]) end
    if tonumber(a[7]) > 0 then redis.call('EXPIRE', base, a[7]) end
  end
  local size, diff = redis.call('GET', s), redis.call('GET', t)
  if not size or n ~= tonumber(size) + tonumber(diff or 0) then return end
  if redis.call('EXISTS', c) == 1 then return end                   -- a stock worker holds the claim and sends the body
  redis.call('HSET', K.outbox, 'body:' .. base,
    cjson.encode({base = base, n = n, size = size, diff = diff or '0', last = a[8]}))
  redis.call('SET', c, 'done', 'EX', tonumber(a[6]) > 0 and a[6] or 86400)
  redis.call('DEL', s)
  redis.call('PERSIST', j)
  redis.call('PUBLISH', K.duty, 'outbox')
end

-- argv from i to last: op, n, a1 … an, op, n, … A failing effect must not stop the others: it becomes a dead letter.
local function apply(argv, i, last)
  while i <= (last or #argv) do
    local op, n = argv[i], tonumber(argv[i + 1])
    local a = {unpack(argv, i + 2, i + 1 + n)}
    i = i + 2 + n
    local err
    if op == 'PART' then
      local ok, e = pcall(chord_part, a)
      err = not ok and tostring(type(e) == 'table' and e.err or e)
    else
      local r = redis.pcall(op, unpack(a))
      err = type(r) == 'table' and r.err
    end
    if err then dead_letter({at = now(), reason = op .. ' failed: ' .. err, raw = cjson.encode(a)}) end
  end
end
