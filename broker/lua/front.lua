-- front(queue, n) -> {id, ready ms, share or '', …}: the first n jobs that may run, in the order of a claim
-- Classes of a lane, and jobs of several nodes, are merged by score. Then shares take turns, each job that is told of
-- counted as if it ran from now on.
-- Keys: class, heads, gangs, job, the shares'.

-- What stands in a lane: the first of each class, and of what else has scores. -> lines of key, offset, id, score
local function lines_of(lane, most, also)
  local keys, lines = {also}, {}
  for _, class in ipairs(redis.call('ZRANGE', K.heads(lane), 0, math.min(most, CLASSES) - 1)) do
    keys[#keys + 1] = K.class(lane, class)
  end
  for _, key in ipairs(keys) do
    local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
    if first[1] then lines[#lines + 1] = {key, 0, first[1], tonumber(first[2])} end
  end
  return lines
end

-- The next of a lane, which then goes one on; nil when there is none left.
local function step(lines)
  local least
  for i, line in ipairs(lines) do if not least or line[4] < lines[least][4] then least = i end end
  if not least then return nil end
  local line = lines[least]
  local id = line[3]
  line[2] = line[2] + 1
  local after = redis.call('ZRANGE', line[1], line[2], line[2], 'WITHSCORES')
  if after[1] then line[3], line[4] = after[1], tonumber(after[2]) else table.remove(lines, least) end
  return id
end

local function tell(out, id)
  local h = redis.call('HMGET', K.job(id), 'ready', 'share', 'mc')
  out[#out + 1] = id; out[#out + 1] = h[1] or ''; out[#out + 1] = h[2] or ''
  return tonumber(h[3] or 0)
end

local function shares_in_line(queue, fair, t)
  local rows = {}
  for _, share in ipairs(redis.call('HKEYS', K.share_waits(queue))) do
    local use, running = used_by(fair, redis.call('HGET', K.share_use(queue), share), t)
    local weight, prefix = weight_in(fair, share)
    local many = prefix and tonumber(redis.call('HGET', K.share_kin(queue), prefix) or 1) or 1
    local row = {share = share, use = use, running = running, weight = math.log(weight * math.max(1, many))}
    row.turn = turn_of(fair, use, running, t) + row.weight
    rows[#rows + 1] = row
  end
  return rows
end

register('front', function(_, argv)
  local queue, n, out, t = argv[1], math.min(tonumber(argv[2]), 1000), {}, now()
  local lines = lines_of(queue, n, K.gangs(queue))
  while #out < 3 * n do
    local id = step(lines)
    if not id then break end
    tell(out, id)
  end
  local fair = fair_policy(queue)
  local rows = shares_in_line(queue, fair, t)
  while #out < 3 * n and #rows > 0 do
    local first = 1
    for i = 2, #rows do if rows[i].turn < rows[first].turn then first = i end end
    local row = rows[first]
    row.lines = row.lines or lines_of(queue .. '/' .. row.share, n)
    local id = step(row.lines)
    if id then
      row.running = row.running + tell(out, id)
      row.turn = turn_of(fair, row.use, row.running, t) + row.weight
    else
      table.remove(rows, first)
    end
  end
  return out
end, {'no-writes'})
