-- What a node holds: a job is leased to it, until the lease is given up.

-- What the jobs that a node holds ask for together stands in its own hash, so that Redis can tell what it has free:
-- `b:mc`, `b:mem`, `b:gpu`, `b:disk`; absent when it holds nothing. The node's own ledger is free a little later.
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
  local h = redis.call('HMGET', job, 'mc', 'mem', 'gpu', 'disk', 'used', 'doc', 'queue', 'created', 'interruptions')
  hold(id, node, num(now() + lease), h)
  become(id, 'STARTING', 'token', token, 'node', node)
  redis.call('HDEL', job, 'class', 'overtaken', 'reserved')
  return {id, token, (tonumber(h[5]) or 0) + 1, h[6], h[7], h[8], tonumber(h[9]) or 0}
end

-- -> whether the node held it until now
local function unlease(id, node)
  redis.call('ZREM', K.leases, id)
  if not node or redis.call('SREM', K.node_jobs(node), id) == 0 then return false end
  local about = K.node(node)
  if redis.call('EXISTS', K.node_jobs(node)) == 0 then
    redis.call('HDEL', about, 'b:mc', 'b:mem', 'b:gpu', 'b:disk')
  else
    local demand = redis.call('HMGET', K.job(id), 'mc', 'mem', 'gpu', 'disk')
    for k, name in ipairs(RESOURCES) do
      if demand[k] and demand[k] ~= '0' then redis.call('HINCRBY', about, 'b:' .. name, '-' .. demand[k]) end
    end
  end
  if redis.call('EXISTS', K.gang_queues) == 1 then redis.call('PUBLISH', K.duty, 'gangs') end
  return true
end
