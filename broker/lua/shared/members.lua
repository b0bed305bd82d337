-- The members of a gang: one small record a node, `<id>#<index>`, that its node leases, starts and settles. The job's own
-- record (here: the gang) is leased to nobody; what its main member does, it does.
--
-- The gang has `gang` (how many), `main`, `members` (JSON [[how many in a row, mc, mem, gpu, disk], …]), and while
-- nodes hold members `out` (how many) and perhaps `back` (JSON): once none holds any more, it waits again.
-- A member has `member_of`, `index`, `state`, its demand, `node` and `token`, `go` (main's address, once main runs)
-- and `halt` (why its node is to stop it).

local function member_id(gang, index) return gang .. '#' .. num(index) end

local function ended(state) return not state or state == 'SUCCEEDED' or state == 'FAILED' end

-- Its node is to stop it, and to give it up. -> false when no node holds it
local function halt(id, reason)
  local h = redis.call('HMGET', K.job(id), 'token', 'node')
  if not h[1] then return false end
  redis.call('HSETNX', K.job(id), 'halt', reason)
  redis.call('PUBLISH', K.control, h[2] .. ' ' .. id)
  return true
end

local function halt_all(gang, count, reason, but)
  for index = 0, count - 1 do
    if index ~= but then halt(member_id(gang, index), reason) end
  end
end

-- Nobody holds a member any more: the gang waits again, or ends.
local function gang_back(gang, back)
  local how = cjson.decode(back)
  restore(gang, nil, how.fatal, how.wait)
  redis.call('HDEL', K.job(gang), 'back', 'out', 'address')
end

-- The gang is to wait again, from when its nodes have given up its members.
local function return_gang(gang, count, fatal, wait, reason)
  redis.call('HSET', K.job(gang), 'back', cjson.encode({fatal = fatal, wait = wait}))
  halt_all(gang, count, reason)
end

-- A node has given up a member, or is lost. It keeps what its last run left: fields.
local function member_over(id, gang, node, state, fields)
  local job = K.job(id)
  redis.call('HSET', job, 'state', state, unpack(fields))
  redis.call('HDEL', job, 'token', 'go', 'halt', 'cancel')
  local h = redis.call('HMGET', K.job(gang), 'state', 'back')
  if ended(h[1]) then redis.call('EXPIRE', job, math.max(60, redis.call('TTL', K.job(gang)))) end
  if unlease(id, node) and h[1] and redis.call('HINCRBY', K.job(gang), 'out', -1) <= 0 and h[2] then
    gang_back(gang, h[2])
  end
end

-- The gang has ended: members that go on are stopped; all records go when its own does, but none that is held.
local function gang_over(gang, count, retention)
  unlease(gang, nil, redis.call('HEXISTS', K.job(gang), 'started') == 0)
  for index = 0, count - 1 do
    local id = member_id(gang, index)
    if not halt(id, 'the main node has ended') then redis.call('EXPIRE', K.job(id), retention) end
  end
end

-- A cancel of a gang that runs: its main member ends it.
local function cancel_gang(gang, count, main, reason)
  local id = member_id(gang, main)
  local h = redis.call('HMGET', K.job(id), 'token', 'node')
  if h[1] then
    redis.call('HSETNX', K.job(id), 'cancel', reason)
    redis.call('PUBLISH', K.control, h[2] .. ' ' .. id)
  end
  halt_all(gang, count, reason, main)
end

-- A node's lease of a member has lapsed. Main's loss, and any before main runs, sends the whole gang back.
local function lose_member(id, gang, node, t, too_often)
  local lost = 'Host ' .. node .. ' lost: its lease lapsed.'
  local h = redis.call('HMGET', K.job(gang), 'state', 'back', 'main', 'gang', 'infra', 'started')
  if not ended(h[1]) and not h[2] and (h[1] == 'STARTING' or id == member_id(gang, h[3])) then
    redis.call('HINCRBY', K.job(gang), 'losses', 1)
    local interruptions = redis.call('HINCRBY', K.job(gang), 'interruptions', 1)
    add_attempt(gang, cjson.encode({node = node, started = h[6] and tonumber(h[6]) or cjson.null, ended = t,
      exit_code = cjson.null, counted = false, reason = lost,
      status_reason = 'Host EC2 (instance ' .. node .. ') lost: its lease lapsed.'}))
    return_gang(gang, tonumber(h[4]), too_often(h[5], interruptions), nil, 'node ' .. node .. ' of the job was lost')
  end
  member_over(id, gang, node, 'FAILED', {'reason', lost, 'ended', num(t)})
end

-- What a node needs to know of a member that it holds; nil when it does not hold it.
local function member_row(id, node)
  local m = redis.call('HMGET', K.job(id), 'token', 'node', 'member_of', 'index', 'go', 'halt', 'cancel', 'started')
  if not m[1] or m[2] ~= node then return nil end
  local h = redis.call('HMGET', K.job(m[3]), 'used', 'doc', 'queue', 'created', 'interruptions', 'gang', 'main', 'epoch')
  if not h[2] then return nil end
  local about = cjson.encode({parent = m[3], index = tonumber(m[4]), count = tonumber(h[6]), main = tonumber(h[7]),
    placement = tonumber(h[8]), go = m[5] or cjson.null, halt = m[6] or '', cancel = m[7] or '',
    started = m[8] and tonumber(m[8]) or cjson.null})
  return {id, m[1], (tonumber(h[1]) or 0) + 1, h[2], h[3], h[4], tonumber(h[5]) or 0, about}
end

-- Members that were placed on a node which does not know of them yet, into out; their demand off free. -> their ids
local function take_placed(node, placed, out, free)
  local seen, ids = {}, {}
  for id in string.gmatch(placed, '%S+') do
    local row = not seen[id] and member_row(id, node)
    seen[id] = true
    if row then
      out[#out + 1], ids[#ids + 1] = row, id
      local demand = redis.call('HMGET', K.job(id), 'mc', 'mem', 'gpu', 'disk')
      for k = 1, 4 do free[k] = free[k] - tonumber(demand[k]) end
      local wanted = redis.call('HGET', K.job(string.match(id, '^(.*)#')), 'gpu_type')
      for kind, n in pairs(free.types) do
        if not wanted or wanted == kind then free.types[kind] = n - tonumber(demand[3]) end
      end
    end
  end
  return ids
end
