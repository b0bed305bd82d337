-- What the functions share. Redis does not roll back a function that fails: check first, write the new place,
-- then remove from the old one.

local PRIORITY = 2 ^ 40          -- score = priority * 2^40 + order of arrival, exact in a double
local EXACT_CLASSES, CLASSES = 192, 256
local INTERRUPTIONS = 10         -- where the record does not say: a job that kills its nodes must not go round for ever
local GRID = {4, 4, 4, 4}        -- ratio of the coarse classes in each dimension

local function now()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function num(x) return string.format('%.0f', x) end          -- tostring() would round the low digits away

-- Shape classes ----------------------------------------------------------------------------------------------
-- "500,512,0,1024" holds jobs of exactly that demand (milli-vCPU, MiB, GPUs, MiB of disk); "~256,256,0,1024" holds
-- jobs of at least that demand and is looked into one by one; what these ask for stands in one hash, so that a look at
-- several is one call.

local shapes, shapes_size = {}, 0
local function shape(class)
  local s = shapes[class]
  if not s then
    local mark, c, m, g, d = string.match(class, '^(~?)(%d+),(%d+),(%d+),(%d+)$')
    s = {tonumber(c), tonumber(m), tonumber(g), tonumber(d), exact = mark == ''}
    if shapes_size > 4096 then shapes, shapes_size = {}, 0 end
    shapes[class], shapes_size = s, shapes_size + 1
  end
  return s
end

local function floor_to_grid(x, ratio)
  local g = 1
  if x < 1 then return 0 end
  while g * ratio <= x do g = g * ratio end
  return g
end

local function classify(queue, demand)
  local exact = table.concat(demand, ',')
  local counts = K.counts(queue)
  if redis.call('HEXISTS', counts, exact) == 1 then return exact end
  local size = redis.call('HLEN', counts)
  if size < EXACT_CLASSES then return exact end
  local coarse = {}
  for i = 1, 4 do coarse[i] = num(floor_to_grid(tonumber(demand[i]), GRID[i])) end
  coarse = '~' .. table.concat(coarse, ',')
  if size < CLASSES - 1 or redis.call('HEXISTS', counts, coarse) == 1 then return coarse end
  return '~0,0,0,0'
end

local function fits(need, free)
  return need[1] <= free[1] and need[2] <= free[2] and need[3] <= free[3] and need[4] <= free[4]
end

-- The ready index --------------------------------------------------------------------------------------------

local function index_add(queue, class, id, score, exact)
  redis.call('ZADD', K.class(queue, class), score, id)
  if class ~= exact then redis.call('HSET', K.demands(queue), id, exact) end
  redis.call('ZADD', K.heads(queue), 'LT', score, class)
  redis.call('HINCRBY', K.counts(queue), class, 1)
end

local function index_remove(queue, class, id)
  local z, heads, counts = K.class(queue, class), K.heads(queue), K.counts(queue)
  if redis.call('ZREM', z, id) == 0 then return false end
  local first = redis.call('ZRANGE', z, 0, 0, 'WITHSCORES')
  if first[1] then redis.call('ZADD', heads, first[2], class) else redis.call('ZREM', heads, class) end
  if redis.call('HINCRBY', counts, class, -1) <= 0 then redis.call('HDEL', counts, class) end
  if not shape(class).exact then redis.call('HDEL', K.demands(queue), id) end
  return true
end

local function make_ready(queue, id)
  local h = redis.call('HMGET', K.job(id), 'mc', 'mem', 'gpu', 'disk', 'score')
  local class = classify(queue, {h[1], h[2], h[3], h[4]})
  redis.call('HSET', K.job(id), 'state', 'RUNNABLE', 'class', class)
  redis.call('HDEL', K.job(id), 'retry_at')
  index_add(queue, class, id, h[5], table.concat({h[1], h[2], h[3], h[4]}, ','))
  redis.call('PUBLISH', K.wake, queue)
end

-- Moves of one job -------------------------------------------------------------------------------------------

-- An end that is decided but whose follow-ups Python has still to record. Celery state: FAILURE or REVOKED.
local function decide_end(id, celery_state, reason)
  redis.call('HSET', K.outbox, 'end:' .. id, cjson.encode({id = id, state = celery_state, reason = reason}))
  redis.call('HSET', K.job(id), 'ending', celery_state)
  redis.call('PUBLISH', K.duty, 'outbox')
end

local function unlease(id, node)
  redis.call('ZREM', K.leases, id)
  redis.call('SREM', K.node_jobs(node), id)
end

local function add_attempt(id, attempt)
  if attempt == '' then return end
  local old = redis.call('HGET', K.job(id), 'attempts')
  redis.call('HSET', K.job(id), 'attempts', old and (old .. '\n' .. attempt) or attempt)
end

-- Waits for a time, and then for nothing else.
local function delay(queue, id, ms)
  redis.call('ZADD', K.delayed(queue), num(ms), id)
  redis.call('HSET', K.job(id), 'state', 'PENDING')
end

-- Takes a leased job back to its old place in the index, at once or in some ms; one that was cancelled meanwhile ends
-- instead, as does one with a fatal reason.
local function restore(id, node, fatal, wait)
  local job = K.job(id)
  local h = redis.call('HMGET', job, 'queue', 'cancel', 'expires', 'revoked')
  local revoked = h[2] or h[4]
  redis.call('HDEL', job, 'token', 'node', 'started')
  redis.call('DEL', K.result(id))            -- else AsyncResult.state stays STARTED
  if revoked then
    decide_end(id, 'REVOKED', revoked)
  elseif fatal then
    decide_end(id, 'FAILURE', fatal)
  else
    if h[3] then redis.call('ZADD', K.expiring, h[3], id) end                -- it waits again
    if wait and wait > 0 then
      redis.call('HSET', job, 'retry_at', num(now() + wait))
      delay(h[1], id, now() + wait)
    else
      make_ready(h[1], id)
    end
  end
  unlease(id, node)
end

-- Dependencies -----------------------------------------------------------------------------------------------
-- A job that waits for others is PENDING and stands in its queue's `blocked`. Its record counts them in `left` and has
-- a field `on:<id>` for each, 1 when any end will do, else 0; each of them has it among its `dependants`.

local AT_ONCE = 64               -- dependants that are let go in one call

-- Waits for no other job any more.
local function unblock(id, queue)
  if redis.call('SREM', K.blocked(queue), id) == 0 then return end
  for _, field in ipairs(redis.call('HKEYS', K.job(id))) do
    if string.sub(field, 1, 3) == 'on:' then
      redis.call('ZREM', K.dependants(string.sub(field, 4)), id)
      redis.call('HDEL', K.job(id), field)
    end
  end
  redis.call('HDEL', K.job(id), 'left')
end

-- One that a dependant waited for has ended, well or not.
local function depended_ended(id, parent, well)
  local job, field = K.job(id), 'on:' .. parent
  local h = redis.call('HMGET', job, field, 'queue', 'left', 'eta')
  if not h[1] then return end                -- it has ended meanwhile
  if not well and h[1] == '0' then
    decide_end(id, 'FAILURE', 'Dependent Job failed: ' .. parent)
    unblock(id, h[2])
  elseif tonumber(h[3]) > 1 then
    redis.call('HINCRBY', job, 'left', -1)
    redis.call('HDEL', job, field)
  else
    if h[4] and tonumber(h[4]) > now() then delay(h[2], id, tonumber(h[4])) else make_ready(h[2], id) end
    unblock(id, h[2])
  end
end

-- Some of those that waited for a job, the most urgent first. -> how many still wait
local function release(parent, well)
  local key = K.dependants(parent)
  for _, id in ipairs(redis.call('ZRANGE', key, 0, AT_ONCE - 1)) do
    depended_ended(id, parent, well)
    redis.call('ZREM', key, id)
  end
  return redis.call('ZCARD', key)
end

local function end_record(id, state, fields, retention)
  local job = K.job(id)
  redis.call('HSET', job, 'state', state, unpack(fields))
  redis.call('HDEL', job, 'token', 'class', 'ending')
  redis.call('ZREM', K.expiring, id)
  redis.call('EXPIRE', job, retention)
  if release(id, state == 'SUCCEEDED') > 0 then
    redis.call('HSET', K.outbox, 'deps:' .. id, cjson.encode({id = id, state = state}))
    redis.call('PUBLISH', K.duty, 'outbox')
  end
end

-- An end is decided for a job that no node holds: it waits for nothing any more.
local function withdraw(id, queue, class)
  if class then index_remove(queue, class, id) end
  redis.call('ZREM', K.delayed(queue), id)
  redis.call('ZREM', K.expiring, id)
  unblock(id, queue)
end

-- See cancel.lua, which says what it answers. keep: seconds.
local function cancel_job(id, reason, terminate, keep)
  local job = K.job(id)
  local h = redis.call('HMGET', job, 'state', 'queue', 'class', 'node', 'ending')
  if not h[1] then
    redis.call('SET', K.cancelled(id), reason, 'EX', keep)
    return 'stored'
  end
  if h[1] == 'SUCCEEDED' or h[1] == 'FAILED' or h[5] then return 'ended' end
  if h[1] == 'STARTING' or h[1] == 'RUNNING' then
    if not terminate and h[1] == 'RUNNING' then
      redis.call('HSETNX', job, 'revoked', reason)   -- it may end by itself, and is not run again
      return 'running'
    end
    redis.call('HSETNX', job, 'cancel', reason)
    redis.call('PUBLISH', K.control, h[4] .. ' ' .. id)
    return 'stopping'
  end
  decide_end(id, 'REVOKED', reason)
  withdraw(id, h[2], h[3])
  return 'cancelled'
end

-- Why a job that has lost its node is not tried again, or nil. infra: how many interruptions it may have, -1 when a
-- rule of its own ends it.
local function too_often(infra, interruptions)
  local most = tonumber(infra or INTERRUPTIONS)
  if most < 0 then return 'its node was lost, and a rule of evaluate_on_exit ends the job for that' end
  if interruptions > most then
    return 'interrupted ' .. interruptions .. ' times, and infrastructure_retries is ' .. most ..
      ': its node was lost once more; does it bring nodes down?'
  end
end

-- Lapsed leases back to the front, without using up an attempt. When nobody has looked for half a lease (Redis or
-- the yard was down, or the clock jumped), nodes had no chance to renew either: every lease gets one more period.
local function reap(lease, limit)
  local t, last = now(), tonumber(redis.call('GET', K.reaper) or 0)
  redis.call('SET', K.reaper, num(t))
  if t - last > lease / 2 or t < last then
    for _, id in ipairs(redis.call('ZRANGE', K.leases, 0, -1)) do
      redis.call('ZADD', K.leases, num(t + lease), id)
    end
    return {}
  end
  local ids = redis.call('ZRANGEBYSCORE', K.leases, '-inf', num(t), 'LIMIT', 0, limit)
  for _, id in ipairs(ids) do
    local h = redis.call('HMGET', K.job(id), 'node', 'token', 'started', 'infra')
    if h[2] then
      redis.call('HINCRBY', K.job(id), 'losses', 1)
      local interruptions = redis.call('HINCRBY', K.job(id), 'interruptions', 1)
      add_attempt(id, cjson.encode({node = h[1], started = h[3] and tonumber(h[3]) or cjson.null, ended = t,
        exit_code = cjson.null, counted = false, reason = 'Host ' .. h[1] .. ' lost: its lease lapsed.',
        status_reason = 'Host EC2 (instance ' .. h[1] .. ') lost: its lease lapsed.'}))
      restore(id, h[1], too_often(h[4], interruptions))
    else
      redis.call('ZREM', K.leases, id)
    end
  end
  return ids
end

-- Jobs whose eta has come, into the index.
local function due(queue, limit)
  local ids = redis.call('ZRANGEBYSCORE', K.delayed(queue), '-inf', num(now()), 'LIMIT', 0, limit)
  for _, id in ipairs(ids) do
    if redis.call('EXISTS', K.job(id)) == 1 then make_ready(queue, id) end
    redis.call('ZREM', K.delayed(queue), id)
  end
  return #ids
end

local function dead_letter(entry)
  redis.call('HSET', K.dead, redis.call('INCR', K.dead_sequence), cjson.encode(entry))
end

-- What follows a job -----------------------------------------------------------------------------------------

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

-- argv from i: op, n, a1 … an, op, n, … A failing effect must not stop the others: it becomes a dead letter.
local function apply(argv, i)
  while i <= #argv do
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

local function register(name, callback, flags)
  redis.register_function{function_name = 'by_' .. name, callback = callback, flags = flags or {'allow-oom'}}
end
