-- Reservations: a job that fits a node when that is empty, and that jobs behind it overtake there for longer than the
-- yard's `reserve_after_s`, gets the node for itself. The node then takes nothing but that job, until it fits.
--
-- The node's hash has `reserved` ("<job id> <since ms>"), the job's record `overtaken` (ms of the first time) and
-- `reserved` ("<since ms> <node> …"); both must agree, else it has lapsed. `reservations` has the nodes of plain jobs: at
-- most one in NODES_FOR_ONE of all. A gang reserves all nodes that it needs or none, and only one gang at a time does.
local NODES_FOR_ONE = 10
local CANDIDATES = 12            -- classes that a claim overtakes and looks at; with fewer, too few jobs get a node
local EAGER = 0.5                -- a node that lacks more than this part of what it has is kept half as long again later

-- What a node has when empty, and how long it lets jobs be overtaken: its `room`, "mc,mem,gpu,disk,reserve after ms".
-- nil where it does not say.
local rooms, rooms_size = {}, 0
local function watch_of(node, room, free, types)
  local r = room and rooms[room]
  if not r then
    local c, m, g, d, after = string.match(room or '', '^(%d+),(%d+),(%d+),(%d+),(%d+)$')
    if not c then return nil end
    r = {tonumber(c), tonumber(m), tonumber(g), tonumber(d), tonumber(after)}
    if rooms_size > 1024 then rooms, rooms_size = {}, 0 end
    rooms[room], rooms_size = r, rooms_size + 1
  end
  return {node = node, free = free, after = r[5], found = {}, total = {r[1], r[2], r[3], r[4], types = types or {}, spot = free.spot}}
end

-- A claim passes over a class that has no room now, s its shape.
local function overtake(watch, lane, class, s)
  if watch and not watch.looked and #watch.found < CANDIDATES and fits(s, watch.total) then
    watch.found[#watch.found + 1] = {lane = lane, class = class, exact = s.exact}
  end
end

local function reserved_on(told, node)
  return told and string.find(told .. ' ', ' ' .. node .. ' ', 1, true) ~= nil
end

local function alive_since(node, t)
  return tonumber(redis.call('ZSCORE', K.nodes, node) or 0) >= t
end

-- Room for one more reservation of a plain job; one of a node that is gone makes room.
local function may_reserve(t, silent)
  local all = redis.call('ZCARD', K.reservations)
  if all < math.max(1, math.floor(redis.call('ZCARD', K.nodes) / NODES_FOR_ONE)) then return true end
  local oldest = redis.call('ZRANGE', K.reservations, 0, 0)[1]
  if not oldest or alive_since(oldest, t - silent) then return false end
  redis.call('ZREM', K.reservations, oldest)
  return true
end

local function kept_for(node)
  local reserved = redis.call('HGET', K.node(node), 'reserved')
  return reserved and string.match(reserved, '^(%S+) ')
end

local function drop_reservation(node, id)
  if kept_for(node) ~= id then return end
  redis.call('HDEL', K.node(node), 'reserved')
  redis.call('ZREM', K.reservations, node)
end

local function first_of(found)
  local id = redis.call('ZRANGE', K.class(found.lane, found.class), 0, 0)[1]
  if not id or found.exact then return id end
  return id, redis.call('HGET', K.demands(found.lane), id)
end

-- How much of what a node has a demand lacks there, at most 1.
local function lack(demand, total, free)
  local most = 0
  for k = 1, 4 do
    if total[k] > 0 then most = math.max(most, (demand[k] - free[k]) / total[k]) end
  end
  return most
end

-- Whether a job has a node already that does better than this one, which lacks so much. One that has not come free in
-- twice the time may be worse: a job there may go on for days.
local function has_better(where, since, demand, watch, lacks, t, lease)
  if not where or not alive_since(where, t - lease) then return false end
  if where == watch.node or t - since < 2 * watch.after then return true end
  local h = redis.call('HMGET', K.node(where), 'room', 'b:mc', 'b:mem', 'b:gpu', 'b:disk')
  local there = watch_of(where, h[1], {})
  if not there then return false end
  for k = 1, 4 do there.free[k] = there.total[k] - (tonumber(h[k + 1]) or 0) end
  return lack(demand, there.total, there.free) < lacks
end

local function reserve(id, node, t)
  redis.call('HSET', K.node(node), 'reserved', id .. ' ' .. num(t))
  redis.call('ZADD', K.reservations, num(t), node)
  redis.call('HSET', K.job(id), 'reserved', num(t) .. ' ' .. node)
end

-- Before a job is given out: of those that it overtakes, the first that has no node yet and has waited for long enough
-- may have this one.
-- -> whether the node is reserved now, and gives nothing out
local function held_back(watch, lease)
  if not watch or #watch.found == 0 then return false end
  local t = now()
  watch.looked = true
  for _, found in ipairs(watch.found) do
    local id, exact = first_of(found)
    local need = shape(exact or found.class)
    if id and fits(need, watch.total) and not fits(need, watch.free) then
      local job = K.job(id)
      local h = redis.call('HMGET', job, 'overtaken', 'reserved')
      local since, where = string.match(h[2] or '', '^(%d+) (%S+)')
      local lacks = lack(need, watch.total, watch.free)
      local after = lacks > EAGER and watch.after * 1.5 or watch.after
      if not h[1] then redis.call('HSET', job, 'overtaken', num(t)) end
      local late = h[1] and t - tonumber(h[1]) >= after
      if late and not has_better(where, tonumber(since), need, watch, lacks, t, lease) then
        if not where and not may_reserve(t, lease) then break end
        if where then drop_reservation(where, id) end
        reserve(id, watch.node, t)
        return true
      end
    end
  end
  watch.found = {}
  return false
end

-- A job goes away while nodes are kept for it.
local function unreserve(id)
  local told = redis.call('HGET', K.job(id), 'reserved')
  if not told then return end
  for node in string.gmatch(told, ' (%S+)') do
    drop_reservation(node, id)
  end
  redis.call('HDEL', K.job(id), 'reserved', 'overtaken')
  if redis.call('GET', K.gang_reserved) == id then redis.call('DEL', K.gang_reserved) end
end

-- What a reserved node may take: -> 'free' (the reservation has lapsed), 'wait', or 'take', id, queue, place, its fields
local function of_reserved(node, reserved, free, total, queues)
  local id = string.match(reserved, '^(%S+) ')
  local h = redis.call('HMGET', K.job(id), 'mc', 'mem', 'gpu', 'disk', 'expires', 'tokens', 'def', 'gpu_type', 'state',
    'reserved', 'gang', 'queue', 'class')
  local demand = {tonumber(h[1]), tonumber(h[2]), tonumber(h[3]), tonumber(h[4]), gpu_type = h[8]}
  local late = h[5] and tonumber(h[5]) <= now()
  if late or h[9] ~= 'RUNNABLE' or not reserved_on(h[10], node) or not queues[h[12]] or
      not (h[11] or fits(demand, total)) then
    if not h[11] and reserved_on(h[10], node) then redis.call('HDEL', K.job(id), 'reserved') end
    drop_reservation(node, id)
    return 'free'
  end
  if h[11] or not fits(demand, free) then return 'wait' end
  return 'take', id, h[12], h[13], h
end
