-- What a node holds: a job is leased to it, until the lease is given up.

-- The document of an array's child, which its parent has.
local function doc_of(id)
  local parent = array_of(id)
  return parent and redis.call('HGET', K.job(parent), 'doc') or ''
end

local function lease_out(id, node, claim, lease)
  local job = K.job(id)
  local token = redis.call('HINCRBY', job, 'epoch', 1) .. ':' .. claim
  redis.call('ZADD', K.leases, num(now() + lease), id)
  redis.call('SADD', K.node_jobs(node), id)
  become(id, 'STARTING', 'token', token, 'node', node)
  redis.call('HDEL', job, 'class')
  local h = redis.call('HMGET', job, 'used', 'doc', 'queue', 'created', 'interruptions')
  return {id, token, (tonumber(h[1]) or 0) + 1, h[2] or doc_of(id), h[3], h[4], tonumber(h[5]) or 0}
end

local function unlease(id, node)
  redis.call('ZREM', K.leases, id)
  redis.call('SREM', K.node_jobs(node), id)
end
