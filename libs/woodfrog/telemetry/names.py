"""Names of spans and attributes that more than one place uses.

HTTP names are stable; the GenAI ones are from the semantic conventions' development version below.
"""

GENAI_CONVENTIONS = "1.45.0"

HTTP_METHOD = "http.request.method"
HTTP_ROUTE = "http.route"
HTTP_STATUS = "http.response.status_code"
GENAI_OPERATION = "gen_ai.operation.name"
GENAI_MODEL = "gen_ai.request.model"
ERROR_TYPE = "error.type"

MODEL = "woodfrog.model"
REPLICA = "woodfrog.replica"
NODE = "woodfrog.node"
RUNG = "woodfrog.rung"
CLIMB_MS = "woodfrog.climb_ms"
FALLBACK = "woodfrog.fallback_reason"
PREDICTED_MS = "woodfrog.predicted_ms"  # of a climb, when it was placed
SEEN = "woodfrog.seen"  # JSON: the nodes that a restore could have gone to, when it was placed
ATTEMPT = "woodfrog.attempt"
RETRIES = "woodfrog.retries"
REQUEST_ID = "woodfrog.request_id"
CLIENT_RETRY = "woodfrog.client_retry_count"

ROUTER_ACQUIRE = "router.acquire"
ROUTER_FORWARD = "router.forward"
ROUTER_FIRST_TOKEN = "router.first_token"
