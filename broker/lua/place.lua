-- place(placement id, lease ms, queue, …) -> {more, id, …}: the gangs that were given their nodes
-- All members of a gang are leased out, to a node each, or none: the most urgent gang of the first queue first. A gang
-- that does not fit now stands in nobody's way. A repeat finds what was placed gone from its queue. more = 1: call again.
-- Members go to the narrowest nodes that fit, those that the fewest nodes fit first.
-- Keys: nodes, node, node_jobs, leases, gangs, gang_queues, job; channel wake.
local LOOKS = 16                               -- gangs looked at in one call
local AT_ONCE_MEMBERS = 128                    -- members placed in one call, but for a gang that has more

local ABOUT = {'vcpus', 'memory_mib', 'gpus', 'disk_gib', 'b:mc', 'b:mem', 'b:gpu', 'b:disk', 'state', 'queues',
  'gangs', 'most_jobs', 'placed'}

local function one_node(name)
  local h = redis.call('HMGET', K.node(name), unpack(ABOUT))
  if h[9] ~= 'READY' or not h[1] then return nil end
  local total = {math.floor(tonumber(h[1]) * 1000 + 1e-6), tonumber(h[2]) or 0, tonumber(h[3]) or 0,
    math.floor((tonumber(h[4]) or 0) * 1024)}
  local free = {}
  for k = 1, 4 do free[k] = total[k] - (tonumber(h[4 + k]) or 0) end
  return {name = name, total = total, free = free, queues = ',' .. (h[10] or '') .. ',', domain = h[11] or '',
    most = tonumber(h[12]), placed = h[13]}
end

-- Nodes that have beaten lately and take jobs, as they are now.
local function alive(lease)
  local found = {}
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', K.nodes, num(now() - lease / 2), '+inf')) do
    found[#found + 1] = one_node(name)
  end
  return found
end

local function serves(node, queue)
  return node.queues == ',,' or string.find(node.queues, ',' .. queue .. ',', 1, true)
end

local function has_slot(node)
  return not node.most or redis.call('SCARD', K.node_jobs(node.name)) < node.most
end

-- By the network that their members can have in common. -> lists of nodes, in a fixed order
local function domains(nodes, queue)
  local lists, by = {}, {}
  for _, node in ipairs(nodes) do
    if serves(node, queue) then
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

-- {{demand, how many, their first index}, …} -> a node for each index, or nil. Pure, but for the count of jobs.
local function match(runs, nodes)
  local wide = {}                              -- how many runs a node could serve
  for _, run in ipairs(runs) do
    run.fit = {}
    for n, node in ipairs(nodes) do
      if fits(run.demand, node.free) then
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
  local taken, chosen = {}, {}
  for _, run in ipairs(runs) do
    table.sort(run.fit, function(a, b)
      if wide[a] ~= wide[b] then return wide[a] < wide[b] end
      local x, y = nodes[a].free, nodes[b].free
      for k = 1, 4 do if x[k] ~= y[k] then return x[k] < y[k] end end
      return nodes[a].name < nodes[b].name
    end)
    local left = run.count
    for _, n in ipairs(run.fit) do
      if left > 0 and not taken[n] and has_slot(nodes[n]) then
        taken[n] = true
        chosen[run.first + run.count - left] = {node = nodes[n], demand = run.demand}
        left = left - 1
      end
    end
    if left > 0 then return nil end
  end
  return chosen
end

local function runs_of(members)
  local runs, first = {}, 0
  for _, m in ipairs(cjson.decode(members)) do
    runs[#runs + 1] = {count = m[1], first = first, demand = {m[2], m[3], m[4], m[5]}}
    first = first + m[1]
  end
  return runs
end

local function give_out(gang, count, main, chosen, placement, lease)
  local job, deadline = K.job(gang), num(now() + lease)
  local token = redis.call('HINCRBY', job, 'epoch', 1) .. ':' .. placement
  for index = 0, count - 1 do
    local id, node, demand = member_id(gang, index), chosen[index].node, chosen[index].demand
    local member = K.job(id)
    redis.call('HDEL', member, 'go', 'halt', 'cancel', 'started', 'ended', 'exit_code', 'reason', 'log')
    redis.call('HSET', member, 'member_of', gang, 'index', index, 'state', 'STARTING', 'token', token,
      'node', node.name, 'mc', num(demand[1]), 'mem', num(demand[2]), 'gpu', num(demand[3]), 'disk', num(demand[4]))
    node.placed = (node.placed and node.placed .. ' ' or '') .. id
    redis.call('HSET', K.node(node.name), 'placed', node.placed)
    hold(id, node.name, deadline, {num(demand[1]), num(demand[2]), num(demand[3]), num(demand[4])})
    for k = 1, 4 do node.free[k] = node.free[k] - demand[k] end
  end
  become(gang, 'STARTING', 'out', count, 'node', chosen[main].node.name)
end

local function try(gang, queue, nodes, placement, lease)
  local h = redis.call('HMGET', K.job(gang), 'gang', 'main', 'members', 'expires')
  if not h[1] then
    gang_remove(queue, gang)                   -- the record is gone; so is the job
    return nil
  end
  if h[4] and tonumber(h[4]) <= now() then
    decide_end(gang, 'REVOKED', 'expired')
    gang_remove(queue, gang)
    return nil
  end
  for _, some in ipairs(domains(nodes, queue)) do
    local chosen = #some >= tonumber(h[1]) and match(runs_of(h[3]), some)
    if chosen then
      give_out(gang, tonumber(h[1]), tonumber(h[2]), chosen, placement, lease)
      gang_remove(queue, gang)
      return tonumber(h[1])
    end
  end
end

register('place', function(_, argv)
  local placement, lease = argv[1], tonumber(argv[2])
  local out, nodes, looked, members = {0}, nil, 0, 0
  if redis.call('EXISTS', K.gang_queues) == 0 then return out end
  for i = 3, #argv do
    for _, gang in ipairs(redis.call('ZRANGE', K.gangs(argv[i]), 0, LOOKS - looked - 1)) do
      if looked == LOOKS or members >= AT_ONCE_MEMBERS then
        out[1] = members > 0 and 1 or 0
        break
      end
      nodes = nodes or alive(lease)
      looked = looked + 1
      local count = try(gang, argv[i], nodes, placement, lease)
      if count then
        out[#out + 1] = gang
        members = members + count
      end
    end
    if looked == LOOKS then break end
  end
  if members > 0 then redis.call('PUBLISH', K.wake, 'placed') end
  return out
end)
