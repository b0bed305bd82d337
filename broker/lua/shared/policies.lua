-- What a queue's configuration says to the claim: {"max_concurrent": n, "fair": {"decay_s", "reservation", "max_vcpus",
-- "shares": [["A", weight], ["UserA*", weight], …]}}, each only where it is said.

local WINDOW = 600               -- s, where a policy says 0
local parsed, parsed_size = {}, 0

local function fair_of(told)
  local window = tonumber(told.decay_s) or 0
  if window <= 0 then window = WINDOW end
  -- What was used a whole window ago counts for a twentieth: e^-3.
  local fair = {window = window, tau = window / 3, reservation = (tonumber(told.reservation) or 0) / 100,
    most = tonumber(told.max_vcpus) and told.max_vcpus * 1000, exact = {}, prefixes = {}, found = {}}
  for _, one in ipairs(told.shares or {}) do
    if string.sub(one[1], -1) == '*' then
      fair.prefixes[#fair.prefixes + 1] = {string.sub(one[1], 1, -2), tonumber(one[2])}
    else
      fair.exact[one[1]] = tonumber(one[2])
    end
  end
  return fair
end

local NO_POLICY = {}
-- Of shares whose queue has lost its policy.
local DEFAULT_FAIR = {window = WINDOW, tau = WINDOW / 3, reservation = 0, exact = {}, prefixes = {}, found = {}}

-- -> the queue's policy; `fair` is absent in a FIFO queue
local function policy_of(queue)
  local text = redis.call('HGET', K.policies, queue)
  if not text then return NO_POLICY end
  local policy = parsed[text]
  if not policy then
    policy = cjson.decode(text)
    if policy.fair then policy.fair = fair_of(policy.fair) end
    if parsed_size > 256 then parsed, parsed_size = {}, 0 end
    parsed[text], parsed_size = policy, parsed_size + 1
  end
  return policy
end
