-- What a node holds: a job is leased to it, until the lease is given up.
-- `holding` on the record, milli-vCPU, says that what the job takes beside nodes' own resources is taken: so it is given
-- back once.

-- The document of an array's child, which its parent has.
local function doc_of(id)
  local parent = array_of(id)
  return parent and redis.call('HGET', K.job(parent), 'doc') or ''
end

-- What the jobs that a node holds ask for together stands in its own hash, so that Redis can tell what it has free:
-- `b:mc`, `b:mem`, `b:gpu`, `b:disk`; absent when it holds nothing. The node's own ledger is free a little later.
-- A job with `exited` on its record has ended there and uploads its outputs: of its demand only the disk is in these, and
-- `b:exited` counts such jobs.
local RESOURCES = {'mc', 'mem', 'gpu', 'disk'}

local function hold(id, node, deadline, demand)
  redis.call('ZADD', K.leases, deadline, id)
  if redis.call('SADD', K.node_jobs(node), id) == 0 then return end
  for k, name in ipairs(RESOURCES) do
    if demand[k] and demand[k] ~= '0' then redis.call('HINCRBY', K.node(node), 'b:' .. name, demand[k]) end
  end
end

local function lease_out(id, node, claim, lease)
  local job = K.job(id)
  local token = redis.call('HINCRBY', job, 'epoch', 1) .. ':' .. claim
  local h = redis.call('HMGET', job, 'mc', 'mem', 'gpu', 'disk', 'used', 'doc', 'queue', 'created', 'interruptions',
    'share', 'tokens', 'def')
  hold(id, node, num(now() + lease), h)
  become(id, 'STARTING', 'token', token, 'node', node, 'holding', h[1])
  redis.call('HDEL', job, 'class', 'passed', 'overtaken', 'reserved')
  take_hold({queue = h[7], mc = tonumber(h[1]), share = h[10], tokens = h[11], definition = h[12]})
  return {id, token, (tonumber(h[5]) or 0) + 1, h[6] or doc_of(id), h[7], h[8], tonumber(h[9]) or 0}
end

local function free_room(node, demand)
  local about = K.node(node)
  if redis.call('EXISTS', K.node_jobs(node)) == 0 then
    redis.call('HDEL', about, 'b:mc', 'b:mem', 'b:gpu', 'b:disk', 'b:exited')
  else
    for k, name in ipairs(RESOURCES) do
      if demand[k] and demand[k] ~= '0' then redis.call('HINCRBY', about, 'b:' .. name, '-' .. demand[k]) end
    end
  end
  if redis.call('EXISTS', K.gang_queues) == 1 then redis.call('PUBLISH', K.duty, 'gangs') end
end

-- unused: it has not come to run, so that tokens which are used up by running come back too. -> whether the node held
-- it until now
local function unlease(id, node, unused)
  redis.call('ZREM', K.leases, id)
  local job = K.job(id)
  local h = redis.call('HMGET', job, 'mc', 'mem', 'gpu', 'disk', 'holding', 'queue', 'share', 'tokens', 'def', 'exited')
  if h[5] then
    redis.call('HDEL', job, 'holding')
    give_hold({queue = h[6], mc = tonumber(h[5]), share = h[7], tokens = h[8], definition = h[9]}, not unused)
  end
  if h[10] then redis.call('HDEL', job, 'exited') end
  if not node or redis.call('SREM', K.node_jobs(node), id) == 0 then return false end
  if h[10] then redis.call('HINCRBY', K.node(node), 'b:exited', -1) end
  free_room(node, h[10] and {'0', '0', '0', h[4]} or h)
  return true
end
