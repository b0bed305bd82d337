-- place(placement id, lease ms, reserve after ms, queue, …) -> {what, id, …}: the gangs that were given their nodes
-- All members of a gang are leased out, to a node each, or none: the most urgent gang of the first queue first. A gang
-- that does not fit now stands in nobody's way. A repeat finds what was placed gone from its queue. what: 1, call again;
-- 2, some wait for room; 0, none waits.
-- Tokens, and limits of jobs at once, count a gang as one job, and its queue's shares all that it asks for.
-- Members go to the narrowest nodes that fit, those that the fewest nodes fit first. The first gang that has waited for
-- longer than `reserve after` while it would fit empty nodes has those kept for it, see shared/reserving.lua.
-- Keys: nodes, node, node_jobs, leases, gangs, gang_queues, gang_reserved, job, policies, holds, limits, consumable,
-- overflow, the shares'; channel wake.
local FIRST, BEHIND = 8, 8                     -- gangs looked at in one call: the most urgent; others, in turn
local AT_ONCE_MEMBERS = 128                    -- members placed in one call, but for a gang that has more

local FIRST_NODES = 64                         -- nodes looked at for the first gang; doubled while they do not suffice

local ABOUT = {'vcpus', 'memory_mib', 'gpus', 'disk_gib', 'b:mc', 'b:mem', 'b:gpu', 'b:disk', 'queues', 'gangs',
  'most_jobs', 'placed', 'reserved', 'gpu_types', 'environment', 'takes', 'b:exited'}

local function one_node(name, least_mc)
  local q = redis.call('HMGET', K.node(name), 'state', 'vcpus', 'b:mc')
  if q[1] ~= 'READY' or not q[2] or tonumber(q[2]) * 1000 + 1e-6 < least_mc + (tonumber(q[3]) or 0) then return nil end
  local h = redis.call('HMGET', K.node(name), unpack(ABOUT))
  local total = {math.floor(tonumber(h[1]) * 1000 + 1e-6), tonumber(h[2]) or 0, tonumber(h[3]) or 0,
    math.floor((tonumber(h[4]) or 0) * 1024)}
  local free = {}
  for k = 1, 4 do free[k] = total[k] - math.max(0, tonumber(h[4 + k]) or 0) end
  total.types = h[14] and cjson.decode(h[14]) or {}
  free.types = {}                              -- of which type those in use are is the node's to say: the fewest
  for kind, n in pairs(total.types) do free.types[kind] = n - math.max(0, tonumber(h[7]) or 0) end
  return {name = name, total = total, free = free, environment = h[15], queues = ',' .. (h[16] or h[9] or '') .. ',',
    domain = h[10] or '', most = tonumber(h[11]), placed = h[12], exited = tonumber(h[17]) or 0,
    kept_for = h[13] and string.match(h[13], '^(%S+) ')}
end

-- Nodes that have beaten lately and take jobs, as they are now; more of them at each call of `more`, until it is false.
local function alive(lease, least_mc)
  local seen = {names = redis.call('ZRANGEBYSCORE', K.nodes, num(now() - lease / 2), '+inf'), at = 0}
  function seen.more()
    local upto = math.min(#seen.names, math.max(FIRST_NODES, 2 * seen.at))
    if seen.at == upto then return false end
    for n = seen.at + 1, upto do seen[#seen + 1] = one_node(seen.names[n], least_mc) end
    seen.at = upto
    return true
  end
  return seen
end

local function serves(node, queue)
  return string.find(node.queues, ',' .. queue .. ',', 1, true)
end

local function has_slot(node)
  return not node.most or redis.call('SCARD', K.node_jobs(node.name)) - node.exited < node.most
end

-- A node of a later environment takes a member once the gang has been ready for a while.
local function its_turn(gang, node)
  local environment = node.environment
  if not environment then return true end
  if gang.turns[environment] == nil then
    gang.turns[environment] = left_to_earlier(overflow_of(gang.queue, environment), gang.ready) <= 0
  end
  return gang.turns[environment]
end

-- By the network that their members can have in common, without those that are kept for others. -> lists of nodes, in a
-- fixed order
local function domains(nodes, gang)
  local lists, by = {}, {}
  for _, node in ipairs(nodes) do
    if serves(node, gang.queue) and its_turn(gang, node) and (not node.kept_for or node.kept_for == gang.id) then
      if not by[node.domain] then
        by[node.domain] = {domain = node.domain}
        lists[#lists + 1] = by[node.domain]
      end
      table.insert(by[node.domain], node)
    end
  end
  table.sort(lists, function(a, b) return a.domain < b.domain end)
  return lists
end

-- {{demand, how many, their first index}, …} -> a node for each index, or nil. what: 'free', the narrowest node first, or
-- 'total', what nodes have when empty, those that have most free now first.
local function match(runs, nodes, what)
  local wide = {}                              -- how many runs a node could serve
  for _, run in ipairs(runs) do
    run.fit = {}
    for n, node in ipairs(nodes) do
      if fits(run.demand, node[what]) then
        run.fit[#run.fit + 1] = n
        wide[n] = (wide[n] or 0) + 1
      end
    end
    if #run.fit < run.count then return nil end
  end
  table.sort(runs, function(a, b)
    if #a.fit ~= #b.fit then return #a.fit < #b.fit end
    return a.first < b.first
  end)
  local function before(a, b)
    if wide[a] ~= wide[b] then return wide[a] < wide[b] end
    local x, y = nodes[a].free, nodes[b].free
    for k = 1, 4 do
      if x[k] ~= y[k] then return (x[k] < y[k]) == (what == 'free') end
    end
    return nodes[a].name < nodes[b].name
  end
  local taken, chosen = {}, {}
  for _, run in ipairs(runs) do
    table.sort(run.fit, before)
    local left = run.count
    for _, n in ipairs(run.fit) do
      if left > 0 and not taken[n] and (what == 'total' or has_slot(nodes[n])) then
        taken[n] = true
        chosen[run.first + run.count - left] = {node = nodes[n], demand = run.demand}
        left = left - 1
      end
    end
    if left > 0 then return nil end
  end
  return chosen
end

local function runs_of(members, gpu_type)
  local runs, first = {}, 0
  for _, m in ipairs(cjson.decode(members)) do
    local demand = {m[2], m[3], m[4], m[5], gpu_type = m[4] > 0 and gpu_type or nil}
    runs[#runs + 1] = {count = m[1], first = first, demand = demand}
    first = first + m[1]
  end
  return runs
end

local function give_out(gang, count, main, chosen, placement, lease, told)
  local job, deadline = K.job(gang), num(now() + lease)
  local token = redis.call('HINCRBY', job, 'epoch', 1) .. ':' .. placement
  local tenant = redis.call('HGET', job, 'tenant')
  for index = 0, count - 1 do
    local id, node, demand = member_id(gang, index), chosen[index].node, chosen[index].demand
    local member = K.job(id)
    redis.call('HDEL', member, 'go', 'halt', 'cancel', 'started', 'ended', 'exit_code', 'reason', 'log')
    redis.call('HSET', member, 'member_of', gang, 'index', index, 'state', 'STARTING', 'token', token,
      'node', node.name, 'mc', num(demand[1]), 'mem', num(demand[2]), 'gpu', num(demand[3]), 'disk', num(demand[4]))
    if tenant then redis.call('HSET', member, 'tenant', tenant) end    -- whose blob its log is
    node.placed = (node.placed and node.placed .. ' ' or '') .. id
    redis.call('HSET', K.node(node.name), 'placed', node.placed)
    hold(id, node.name, deadline, {num(demand[1]), num(demand[2]), num(demand[3]), num(demand[4])})
    for k = 1, 4 do node.free[k] = node.free[k] - demand[k] end
    for kind, n in pairs(node.free.types) do node.free.types[kind] = n - demand[3] end
  end
  redis.call('HDEL', job, 'overtaken')
  become(gang, 'STARTING', 'out', count, 'node', chosen[main].node.name, 'holding', num(told.mc))
  take_hold(told)
end

-- The first gangs, and some behind them: those that wait for what there is not must not hide the rest. Each call looks
-- further on, until it has seen all. -> {id, queue}, …, most urgent first; whether there are more
local passed = 0
local function to_look_at(argv, first)
  local found, before = {}, 0
  for i = first, #argv do
    local size = redis.call('ZCARD', K.gangs(argv[i]))
    for _, part in ipairs({{0, FIRST}, {FIRST + passed, FIRST + passed + BEHIND}}) do
      local from, to = math.max(part[1] - before, 0), math.min(part[2] - before, size)
      local ids = from < to and redis.call('ZRANGE', K.gangs(argv[i]), from, to - 1) or {}
      for _, id in ipairs(ids) do found[#found + 1] = {id, argv[i]} end
    end
    before = before + size
  end
  passed = FIRST + passed + BEHIND < before and passed + BEHIND or 0
  return found, #found < before
end

-- Gangs to be looked at now, most urgent first; those that are gone or too late are dealt with. -> gangs, least vCPU,
-- whether there are more
local function waiting(argv, first)
  local found, least = {}, math.huge
  local some, more = to_look_at(argv, first)
  for _, one in ipairs(some) do
    local id, queue = one[1], one[2]
    local h = redis.call('HMGET', K.job(id), 'gang', 'main', 'members', 'expires', 'ready', 'share', 'tokens', 'def',
      'gpu_type')
    if not h[1] then
      gang_remove(queue, id)                   -- the record is gone; so is the job
    elseif h[4] and tonumber(h[4]) <= now() then
      decide_end(id, 'REVOKED', 'expired')
      withdraw(id, queue)
    else
      local gang = {id = id, queue = queue, count = tonumber(h[1]), main = tonumber(h[2]), members = h[3], ready = h[5],
        gpu_type = h[9], turns = {}, hold = {queue = queue, mc = 0, share = h[6], tokens = h[7], definition = h[8]}}
      for _, run in ipairs(runs_of(gang.members)) do
        least = math.min(least, run.demand[1])
        gang.hold.mc = gang.hold.mc + run.count * run.demand[1]
      end
      found[#found + 1] = gang
    end
  end
  return found, least, more
end

-- Whether a gang may start, by all that is counted beside what nodes have.
local function may_start(gang)
  local fair = policy_of(gang.queue).fair
  if room_of(gang.queue) <= 0 or (fair and unreserved(gang.queue, fair) < gang.hold.mc) then return false end
  local tokens = gang.hold.tokens and tokens_of(gang.hold.tokens) or {}
  return open_gates({tokens = tokens, definition = gang.hold.definition}, {})
end

-- -> a node for each member, or nil; looks at more nodes only when it has to
local function find(gang, nodes, what)
  repeat
    for _, some in ipairs(domains(nodes, gang)) do
      local chosen = #some >= gang.count and match(runs_of(gang.members, gang.gpu_type), some, what)
      if chosen then return chosen end
    end
  until not nodes.more()
end

-- Whether the nodes that are kept for a gang are all there still.
local function still_kept(gang, t)
  local told = redis.call('HGET', K.job(gang.id), 'reserved')
  if not told then return false end
  for node in string.gmatch(told, ' (%S+)') do
    if not alive_since(node, t) or kept_for(node) ~= gang.id then return false end
  end
  return true
end

-- A gang found no room. -> whether nodes are kept for it from now on
local function keep_nodes(gang, lease, after)
  local t, job = now(), K.job(gang.id)
  local since = redis.call('HGET', job, 'overtaken')
  if not since then redis.call('HSET', job, 'overtaken', num(t)) end
  if not since or t - tonumber(since) < after or after < 0 then return false end
  local holder = redis.call('GET', K.gang_reserved)
  if holder and holder ~= gang.id and redis.call('HGET', K.job(holder), 'state') == 'RUNNABLE' then return false end
  if holder == gang.id and still_kept(gang, t - lease) then return true end
  if holder then unreserve(holder) end
  local nodes = alive(lease, -math.huge)
  local chosen = find(gang, nodes, 'total')
  if not chosen then return false end
  local names = {num(t)}
  for index = 0, gang.count - 1 do names[#names + 1] = chosen[index].node.name end
  redis.call('SET', K.gang_reserved, gang.id)
  redis.call('HSET', job, 'reserved', table.concat(names, ' '), 'overtaken', since)
  for k = 2, #names do redis.call('HSET', K.node(names[k]), 'reserved', gang.id .. ' ' .. names[1]) end
  return true
end

register('place', function(_, argv)
  local placement, lease, after = argv[1], tonumber(argv[2]), tonumber(argv[3])
  local out, members = {0}, 0
  if redis.call('EXISTS', K.gang_queues) == 0 then return out end
  local gangs, least, more = waiting(argv, 4)
  local nodes, kept, holder = #gangs > 0 and alive(lease, least), false, redis.call('GET', K.gang_reserved)
  for _, gang in ipairs(gangs) do
    if members >= AT_ONCE_MEMBERS then
      out[1] = 1
      break
    end
    local open = may_start(gang)
    local chosen = (open or gang.id == holder) and find(gang, nodes, 'free')
    if chosen and not open then                -- it waits for something else: its nodes must not stand idle for that
      unreserve(gang.id)
      out[1], nodes = 2, alive(lease, least)
    elseif chosen then
      unreserve(gang.id)
      give_out(gang.id, gang.count, gang.main, chosen, placement, lease, gang.hold)
      gang_remove(gang.queue, gang.id)
      out[#out + 1] = gang.id
      members = members + gang.count
    else
      out[1] = 2
      if open and not kept and keep_nodes(gang, lease, after) then
        kept, nodes = true, alive(lease, least)  -- those behind it see what is kept
      end
    end
  end
  if members > 0 then
    if more then out[1] = 1 end
    redis.call('PUBLISH', K.wake, 'placed')
  end
  return out
end)
