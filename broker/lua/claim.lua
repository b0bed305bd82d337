-- claim(node, claim id, lease ms, mc, mem, gpu, disk, count, more (JSON or ''), queue, …) -> {more, job, …}
-- A job is {id, token, attempt, doc, queue, created ms, interruptions}; a member of a gang, which has been placed on this
-- node and comes before all else, has an eighth: JSON, see member_row.
-- Up to `count` jobs that fit what is free, queues in the order given; in a queue with shares the share that has used
-- least, then its most urgent class. A repeated claim id gets the answer of the first call. more = 1: looked at the
-- bounded number of jobs or classes and found none; ask again. more (JSON): "types": free devices, "a100:2,t4:1",
-- "has": short hashes of inputs that the node holds, "0123abcd …". A node that is reserved for a job gives out nothing
-- else, see shared/reserving.lua.
-- Keys: node, nodes, reservations, node_jobs, leases, reaper, job, class, heads, counts, demands, delayed, expiring,
-- outbox, policies, holds, limits, consumable, gates, overflow, the shares'.
local LOOKS = 32                               -- jobs looked at in coarse classes in one call
local AMONG, PASSES = 8, 8                     -- first jobs of a class of which one may pass the others; how often
local CLASS_LOOKS = 256                        -- classes looked at in vain, in one call, in lanes of shares

-- Where this node's walk through the coarse classes of a lane stopped: so every job is looked at in the end, however
-- many that do not fit stand before it. -> offset, class; nothing when no walk is under way. BEHIND: it is over, and waits
-- for those through the node's other queues; else they might never be over together, and the node would ask for ever.
local BEHIND = 'behind'
local function stopped_at(lane, free, node)
  local mark = redis.call('HGET', K.node(node), 'at:' .. lane)
  if not mark then return nil end
  if mark == BEHIND then return 0, BEHIND end
  local from, class = string.match(mark, '^(%d+) (.*)$')
  if fits(shape(class), free) and redis.call('ZSCORE', K.heads(lane), class) then return tonumber(from), class end
end

local function may_go(s, free, seen) return fits(s, free) and (not s.gated or open_gates(s, seen)) end

-- Whether a job is left to nodes of earlier environments for now. Those behind it are not.
local function left_now(c, id)
  if not c.wait or left_to_earlier(c.wait, redis.call('HGET', K.job(id), 'ready')) <= 0 then return false end
  c.left = true
  return true
end

-- The first of `most` jobs of a coarse class that fits, and how many were looked at.
local function look_into(lane, class, from, most, free, c)
  local ids = redis.call('ZRANGE', K.class(lane, class), from, from + most - 1)
  local demands = #ids > 0 and redis.call('HMGET', K.demands(lane), unpack(ids))
  for i, id in ipairs(ids) do
    if (not demands[i] or may_go(shape(demands[i]), free, c.seen)) and not left_now(c, id) then return id end
  end
  return nil, #ids
end

-- Of the first jobs of a class, if they are as urgent as the first one: that whose inputs the node has. The first is
-- passed a bounded number of times, and so is each before which it stands.
local function nearest(lane, class, c)
  local ids = redis.call('ZRANGE', K.class(lane, class), 0, AMONG - 1, 'WITHSCORES')
  local first, unit = ids[1], string.find(lane, '/', 1, true) and SHARE_PRIORITY or PRIORITY
  if type(c.has) == 'string' then
    local set = {}
    for short in string.gmatch(c.has, '%S+') do set[short] = true end
    c.has = set
  end
  local function is_here(id)
    for short in string.gmatch(redis.call('HGET', K.job(id), 'in') or '', '%S+') do
      if c.has[short] then return true end
    end
  end
  if #ids <= 2 or is_here(first) then return first end
  if tonumber(redis.call('HGET', K.job(first), 'passed') or 0) >= PASSES then return first end
  for i = 3, #ids, 2 do
    if math.floor(tonumber(ids[i + 1]) / unit) > math.floor(tonumber(ids[2]) / unit) then break end
    if is_here(ids[i]) and not left_now(c, ids[i]) then
      redis.call('HINCRBY', K.job(first), 'passed', 1)
      return ids[i]
    end
  end
  return first
end

local function first_in(lane, class, s, c)
  if s.inputs and c.has then return nearest(lane, class, c) end
  return redis.call('ZRANGE', K.class(lane, class), 0, 0)[1]
end

-- One call walks LOOKS jobs on. A walk ends with a job that fits, or behind the last one: then there is none, and it is
-- noted in `over`.
-- -> id, class, whether there is more to look at, how many classes were looked at
local function pick(lane, free, c)
  local mark, left, walking, from, resume = 'at:' .. lane, LOOKS, false, 0, nil
  local node, seen = c.node, c.seen
  local classes = redis.call('ZRANGE', K.heads(lane), 0, CLASSES)
  for _, class in ipairs(classes) do
    local s = shape(class)
    if may_go(s, free, seen) then
      local id = s.exact and first_in(lane, class, s, c)
      if id and not left_now(c, id) then return id, class, left == 0 end
      if not s.exact and not walking then
        walking = true
        from, resume = stopped_at(lane, free, node)
      end
      if not s.exact and left > 0 and (not resume or resume == class) then
        from = resume and from or 0
        local found, looked = look_into(lane, class, from, left, free, c)
        if found then
          redis.call('HDEL', K.node(node), mark)
          return found, class
        end
        left, resume = left - looked, nil
        if left == 0 then redis.call('HSET', K.node(node), mark, from + looked .. ' ' .. class) end
      end
    elseif c.watch and not fits(s, free) and (not s.gated or open_gates(s, seen)) then
      overtake(c.watch, lane, class, s)
    end
  end
  if walking and left > 0 then c.over[#c.over + 1] = mark end
  return nil, nil, left == 0, #classes
end

-- The node is to ask again, or all walks that are over begin anew with its next question.
local function walks_over(node, over, again)
  for _, mark in ipairs(over) do
    if again then redis.call('HSET', K.node(node), mark, BEHIND) else redis.call('HDEL', K.node(node), mark) end
  end
end

-- The shares that have jobs ready, in rows of one weight: in a row they stand by their use. Not those in vain.
local function line_up(queue, fair, vain)
  local rows, by_weight = {}, {}
  local all = redis.call('ZRANGE', K.shares(queue), 0, -1, 'WITHSCORES')
  local kins = #fair.prefixes > 0 and #all > 0 and redis.call('HGETALL', K.share_kin(queue)) or {}
  local many = {}
  for i = 1, #kins, 2 do many[kins[i]] = tonumber(kins[i + 1]) end
  for i = 1, #all, 2 do
    if not vain[all[i]] then
      local weight, prefix = weight_in(fair, all[i])
      if prefix then weight = weight * math.max(1, many[prefix] or 1) end
      local row = by_weight[weight]
      if not row then
        row = {weight = math.log(weight), at = 1}
        by_weight[weight], rows[#rows + 1] = row, row
      end
      row[#row + 1] = {share = all[i], score = all[i + 1] == '-inf' and -math.huge or tonumber(all[i + 1])}
    end
  end
  return rows
end

-- A share's place in its row is by what it has used until now.
local function bring_up(queue, fair, row, t)
  local first = row[row.at]
  local use, running = used_by(fair, redis.call('HGET', K.share_use(queue), first.share), t)
  local score = turn_of(fair, use, running, t)
  if score ~= first.score then redis.call('ZADD', K.shares(queue), 'XX', score_text(score), first.share) end
  first.score, first.fresh = score, true
  local i = row.at
  while row[i + 1] and row[i + 1].score < score do
    row[i], i = row[i + 1], i + 1
  end
  row[i] = first
end

-- -> the share whose turn it is, first in its row; nil when there is none left
local function next_share(queue, fair, rows, t)
  while true do
    local best
    for _, row in ipairs(rows) do
      local first = row[row.at]
      if first and (not best or first.score + row.weight < best[best.at].score + best.weight) then best = row end
    end
    if not best or best[best.at].fresh then return best and best[best.at], best end
    bring_up(queue, fair, best, t)
  end
end

-- Shares in which this node has found nothing since anything changed that could help: it has no more free than it
-- had, no lane has got anything new, no gate has opened.
local function in_vain(queue, free, c)
  local node, anew = c.node, c.watch and c.watch.after / 4 or 0    -- jobs that others overtake are to be seen as such
  local now_is = (redis.call('GET', K.news(queue)) or '') .. ' ' .. (redis.call('GET', K.gates) or '') .. ' ' .. c.types
    .. ' ' .. (anew > 0 and num(math.floor(now() / anew)) or '')
  local tried = {now = now_is, shares = {}, changed = false}
  local mark = redis.call('HGET', K.node(node), 'no:' .. queue)
  if not mark then return tried end
  local c, m, g, d, was, shares = string.match(mark, '^(%d+) (%d+) (%d+) (%d+)\n([^\n]*)\n(.*)$')
  local had = {tonumber(c), tonumber(m), tonumber(g), tonumber(d), types = {}}
  tried.changed = true                         -- this is to be written anew, or to go
  if was ~= now_is or not fits({free[1], free[2], free[3], free[4]}, had) then return tried end
  for share in string.gmatch(shares, '%S+') do tried.shares[share] = true end
  tried.changed = false
  return tried
end

local function keep_in_vain(queue, node, free, tried)
  if not tried.changed then return end
  local names = {}
  for share in pairs(tried.shares) do names[#names + 1] = share end
  if #names == 0 then
    redis.call('HDEL', K.node(node), 'no:' .. queue)
  else
    local had = {}
    for k = 1, 4 do had[k] = num(math.floor(free[k])) end
    redis.call('HSET', K.node(node), 'no:' .. queue,
      table.concat(had, ' ') .. '\n' .. tried.now .. '\n' .. table.concat(names, ' '))
  end
end

-- The next job of a queue. c: what the call knows; q: what it knows of this queue.
-- -> id, place, whether there is more to look at
local function pick_of(c, queue, q)
  local id, class, unfinished
  if not q.rows then
    id, class, unfinished = pick(queue, c.free, c)
    if id or unfinished then return id, class, unfinished end
    if not q.fair and redis.call('EXISTS', K.shares(queue)) == 0 then return nil end
    q.fair, q.t, q.looks = q.fair or DEFAULT_FAIR, now(), CLASS_LOOKS
  end
  local free = {math.min(c.free[1], unreserved(queue, q.fair)), c.free[2], c.free[3], c.free[4], types = c.free.types,
    spot = c.free.spot}
  if free[1] <= 0 then return nil end
  if not q.rows then
    q.tried = in_vain(queue, free, c)
    q.rows = line_up(queue, q.fair, q.tried.shares)
  end
  while true do
    local first, row = next_share(queue, q.fair, q.rows, q.t)
    if not first then break end
    local looked
    c.left = false
    id, class, unfinished, looked = pick(queue .. '/' .. first.share, free, c)
    if id or unfinished then
      first.fresh = false
      return id, id and first.share .. '/' .. class, unfinished
    end
    if looked > 0 and not c.left then q.tried.shares[first.share], q.tried.changed, q.tried.free = true, true, free end
    q.looks = q.looks - looked
    row.at = row.at + 1
    if q.looks <= 0 then return nil, nil, true end
  end
end

-- -> the answer of this claim, when it was made before; else nil, and what is known of the node
local function repeated(node, claim)
  local last = redis.call('HMGET', K.node(node), 'claim', 'claimed', 'placed', 'room', 'reserved', 'environment',
    'gpu_types')
  if last[1] ~= claim then
    return nil, {placed = last[3], room = last[4], reserved = last[5], environment = last[6], gpu_types = last[7]}
  end
  local out = {0}
  for id in string.gmatch(last[2], '%S+') do
    local h = redis.call('HMGET', K.job(id), 'token', 'used', 'doc', 'queue', 'created', 'interruptions', 'member_of')
    if h[7] then
      out[#out + 1] = member_row(id, node)
    elseif h[1] and string.match(h[1], '^%d+:(.*)$') == claim then
      out[#out + 1] = {id, h[1], (tonumber(h[2]) or 0) + 1, h[3] or doc_of(id), h[4], h[5], tonumber(h[6]) or 0}
    end
  end
  return out
end

-- Whether what a claim picked is a job that may still run; one that may not leaves the index.
local function runs_still(queue, place, id, h)
  if not h[1] then
    index_remove(queue, place, id)             -- the record is gone; so is the job
  elseif h[5] and tonumber(h[5]) <= now() then
    decide_end(id, 'REVOKED', 'expired')
    index_remove(queue, place, id)
  elseif closing(id) then
    decide_end(id, 'REVOKED', closing(id))
    index_remove(queue, place, id)
  else
    return true
  end
end

-- h: mc, mem, gpu, disk, expires, tokens, def, gpu_type of its record
local function give_out(c, queue, place, id, h)
  c.out[#c.out + 1] = lease_out(id, c.node, c.claim, c.lease)
  c.ids[#c.ids + 1] = id
  index_remove(queue, place, id)
  for k = 1, 4 do c.free[k] = c.free[k] - tonumber(h[k]) end
  for kind, n in pairs(c.free.types) do        -- of which type an untyped job's devices are is the node's to say
    if not h[8] or h[8] == kind then c.free.types[kind] = n - tonumber(h[3]) end
  end
  if h[6] or h[7] then c.seen = {} end
end

-- The job that the node is reserved for, if it fits now and may run. -> whether the node gives out nothing else
local function take_reserved(c, reserved, queues)
  local told = {}
  for _, queue in ipairs(queues) do told[queue] = true end
  local what, id, queue, place, h = of_reserved(c.node, reserved, c.free, c.watch and c.watch.total or c.free, told)
  if what ~= 'take' then return what == 'wait' end
  local lane, class = lane_of(queue, place)
  local s = shape(redis.call('HGET', K.demands(lane), id) or class)
  drop_reservation(c.node, id)
  if room_of(queue) > 0 and not closing(id) and fits(s, c.free) and (not s.gated or open_gates(s, c.seen)) then
    give_out(c, queue, place, id, h)
  else
    redis.call('HDEL', K.job(id), 'reserved')
  end
  return false
end

local function take_from(c, queue)
  local room, skips = room_of(queue), 0
  local q = {fair = policy_of(queue).fair}
  c.wait = overflow_of(queue, c.environment)
  while room > 0 and #c.ids < c.count and skips < 32 do
    local id, place, unfinished = pick_of(c, queue, q)
    c.more = c.more or unfinished
    if not id then break end
    local h = redis.call('HMGET', K.job(id), 'mc', 'mem', 'gpu', 'disk', 'expires', 'tokens', 'def', 'gpu_type')
    if not runs_still(queue, place, id, h) then
      skips = skips + 1
    elseif held_back(c.watch, c.lease) then
      c.kept = true
      break
    else
      give_out(c, queue, place, id, h)
      room = room - 1
    end
  end
  if q.tried then keep_in_vain(queue, c.node, q.tried.free or c.free, q.tried) end
  if skips == 32 then c.more = true end
end

register('claim', function(_, argv)
  local node, claim, lease = argv[1], argv[2], tonumber(argv[3])
  local free = {tonumber(argv[4]), tonumber(argv[5]), tonumber(argv[6]), tonumber(argv[7])}
  local again, about = repeated(node, claim)
  if again then return again end
  local more = argv[9] ~= '' and cjson.decode(argv[9]) or {}
  local types = more.types or ''
  free.types = types_of(types)
  free.spot = about.environment and redis.call('SISMEMBER', K.spot, about.environment) == 1
  reap(lease, 8)
  local c = {node = node, claim = claim, lease = lease, free = free, count = tonumber(argv[8]), types = types,
    environment = about.environment, has = more.has, seen = {}, out = {0}, ids = {}, over = {},
    more = false}
  if about.placed then c.ids = take_placed(node, about.placed, c.out, free) end
  c.watch = watch_of(node, about.room, free, about.gpu_types and cjson.decode(about.gpu_types))
  c.kept = about.reserved and take_reserved(c, about.reserved, {unpack(argv, 10)})
  for i = 10, #argv do
    due(argv[i], 8)
    if not c.kept then take_from(c, argv[i]) end
  end
  if #c.ids > 0 then redis.call('HSET', K.node(node), 'claim', claim, 'claimed', table.concat(c.ids, ' ')) end
  if about.placed then redis.call('HDEL', K.node(node), 'placed') end
  c.out[1] = (c.more and #c.ids == 0) and 1 or 0
  walks_over(node, c.over, c.out[1] == 1)
  return c.out
end)
