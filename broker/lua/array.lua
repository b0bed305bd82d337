-- array(id) -> 1 when there is more to do: call again; else 0
-- A chunk of what is to be done with an array's children: they are told that their array ends, spawned, or, when the
-- parent has ended, given its time to vanish. Those of an array that ends are spawned into their end. A repeat, or a
-- call at any other time, does what is left.
-- Keys: outbox, job, unspawned, cancelled, and those of the moves; channel wake.
-- Refused when Redis is out of memory: the children then come later; array_close(id) does all of it but that.
local SPAWNED, TOLD, KEPT = 64, 40, 128        -- children in one call

local COPIED = {'queue', 'mc', 'mem', 'gpu', 'disk', 'priority', 'infra', 'share', 'sched', 'tokens', 'def', 'gpu_type', 'in',
  'od', 'tenant'}

local function copied(parent)
  local values, fields = redis.call('HMGET', K.job(parent), unpack(COPIED)), {}
  for i, name in ipairs(COPIED) do
    if values[i] then fields[#fields + 1] = name; fields[#fields + 1] = values[i] end
  end
  return fields
end

-- What this child waits for.
local function depends_of(depends, parent, index)
  local own = {}
  for _, on in ipairs(depends) do
    if on[3] == 'N_TO_N' then own[#own + 1] = {on[1] .. ':' .. num(index), on[2]}
    elseif on[3] == 'SEQUENTIAL' and index > 0 then own[#own + 1] = {parent .. ':' .. num(index - 1), on[2]} end
  end
  return own
end

local function spawn_one(id, queue, score, depends, close, ahead)
  local cancelled = ahead and redis.call('GET', K.cancelled(id))
  if close[1] then return end_child(id, close[1], close[2]) end
  if cancelled then
    redis.call('DEL', K.cancelled(id))
    return end_child(id, 'REVOKED', cancelled)
  end
  local left, failed = depend(id, queue, depends, score)
  if failed then end_child(id, 'FAILURE', 'Dependent Job failed: ' .. failed)
  elseif left > 0 then become(id, 'PENDING')
  else make_ready(queue, id, true) end
end

-- -> whether there are more to come
local function spawn(parent, h)
  local size, from, queue, depends = tonumber(h[1]), tonumber(h[2]), h[3], h[5] and cjson.decode(h[5]) or {}
  local to, fields, created = math.min(size, from + SPAWNED), copied(parent), num(now())
  for index = from, to - 1 do
    local id, score = parent .. ':' .. num(index), num(tonumber(h[4]) + index)
    if redis.call('EXISTS', K.job(id)) == 0 then
      redis.call('HSET', K.job(id), 'parent', parent, 'index', num(index), 'score', score, 'created', created,
        unpack(fields))
      spawn_one(id, queue, score, depends_of(depends, parent, index), {h[6], h[7]}, h[9])
    end
  end
  redis.call('HSET', K.job(parent), 'spawned', num(to))
  if to < size and not h[6] then redis.call('HSET', K.unspawned(queue), parent, num(size - to))
  else redis.call('HDEL', K.unspawned(queue), parent) end
  redis.call('PUBLISH', K.wake, queue)
  return to < size
end

-- -> whether there are more to tell
local function tell(parent, h)
  local from, spawned = tonumber(h[8]), tonumber(h[2])
  local to = math.min(spawned, from + TOLD)
  for index = from, to - 1 do cancel_job(parent .. ':' .. num(index), h[7], h[10] == '1') end
  redis.call('HSET', K.job(parent), 'fanned', num(to))
  return to < spawned
end

-- -> whether there are more that the parent's end is to be given
local function keep(field, entry)
  local to = math.min(entry.children, entry.done + KEPT)
  for index = entry.done, to - 1 do redis.call('PEXPIREAT', K.job(entry.id .. ':' .. num(index)), entry.at) end
  entry.done = to
  redis.call('HSET', K.outbox, field, cjson.encode(entry))
  return to < entry.children
end

local function step(parent, field, entry, coming)
  if entry.children then return keep(field, entry) end
  local h = redis.call('HMGET', K.job(parent), 'array', 'spawned', 'queue', 'score', 'depends', 'close', 'close_reason',
    'fanned', 'ahead', 'hard', 'ending')
  if not h[2] or h[11] then return false end
  if h[6] and tonumber(h[8]) < tonumber(h[2]) then return tell(parent, h) or tonumber(h[2]) < tonumber(h[1]) end
  if tonumber(h[2]) == tonumber(h[1]) then return false end
  return not (coming or h[6]) or spawn(parent, h)
end

local function chunk(id, coming)
  local field = 'array:' .. id
  local entry = redis.call('HGET', K.outbox, field)
  if not entry then return 0 end
  if step(id, field, cjson.decode(entry), coming) then return 1 end
  redis.call('HDEL', K.outbox, field)
  return 0
end

register('array', function(_, argv) return chunk(argv[1], true) end, {})
register('array_close', function(_, argv) return chunk(argv[1], false) end)

-- children_end(most) -> how many are still to end: call again
-- Children whose end was decided while no node held them, in the order in which that happened; a child's end may decide
-- that of the next one.
-- Keys: child_ends, outbox, job, dependants and those of their moves.
register('children_end', function(_, argv)
  for _ = 1, tonumber(argv[1]) do
    local id = redis.call('LINDEX', K.child_ends, 0)
    if not id then break end
    local h = redis.call('HMGET', K.job(id), 'ending', 'reason')
    if h[1] then end_child(id, h[1], h[2]) end
    redis.call('LPOP', K.child_ends)
  end
  local left = redis.call('LLEN', K.child_ends)
  if left == 0 then redis.call('HDEL', K.outbox, 'children') end
  return left
end)
