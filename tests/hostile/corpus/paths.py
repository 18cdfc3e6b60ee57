"""S4, S17, S20: paths that are none, or that look like another, and methods that a route does not have."""

from __future__ import annotations

from tests.hostile.case import CHAT, Case, get, post

__all__ = ["CASES"]

GOOD = {"model": "echo", "messages": [{"role": "user", "content": "x"}]}

UNKNOWN = [
    "/",
    "//",
    "/v1",
    "/v1/",
    "/V1/models",
    "/v1/Models",
    "/v1/models;x=y",
    "/v1;/models",
    "/v1/models.json",
    "/v1/models%00",
    "/v1%00/models",
    "/%00",
    "/v1/models%20",
    "/v1/models%0d%0ax:y",
    "/v1\\models",
    "/v1/chat",
    "/v1/chat/completions/x",
    "/v1/chat/completions%2f..",
    "/v1/chat%2e/completions",
    "/v2/models",
    "/v1/../etc/passwd",
    "/../../../etc/passwd",
    "/..%2f..%2f..%2fetc%2fpasswd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/%252e%252e/etc/passwd",
    "/..%c0%af..%c0%afetc/passwd",
    "/..%ef%bc%8fetc",
    "/%c0%ae%c0%ae/etc/passwd",
    "/....//....//etc/passwd",
    "/..;/v1/models",
    "/.;/v1/models",
    "/static/../../etc/passwd",
    "/file:///etc/passwd",
    "/etc/passwd",
    "/C:/Windows/win.ini",
    "/health/../v1/models",
    "/health/..%2fv1/models",
    "/health/v1/models",
    "/health;/v1/models",
    "/health%2f..%2fv1%2fmodels",
    "/health%3f/v1/models",
    "/ready/../metrics",
    "/./v1/models",
    "/v1/./models",
    "/x/../v1/models",
    "/metrics.txt",
    "/cluster",
    "/cluster/workers/../workers",
    "/schema/../metrics",
    "/%ff",
    "/%",
    "/%zz",
    "/%u0041",
    "/~root",
    "/'%20OR%201=1--",
    "/<script>alert(1)</script>",
    "/${jndi:ldap://evil.example/x}",
    "/{{7*7}}",
    "/%0d%0aLocation:%20http://evil.example/",
    "//evil.example",
    "//evil.example/%2f..",
    "/%5cevil.example",
    "/\\evil.example",
    "///evil.example/..",
    "/.well-known/openid-configuration",
    "/favicon.ico",
    "/robots.txt",
]
"""No route, in whatever way it is read: a 404, whoever asks, and never a redirect."""

SAME = [
    "/v1%2fmodels%2f..%2f..%2fetc%2fpasswd",
    "//v1/models",
    "/v1//models",
    "/v1/models/",
    "/v1/models//",
    "/%76%31/models",
    "/v1/%6dodels",
    "/v1/models?key=x",
    "/v1/models?/health",
    "/v1/models#/health",
    "/metrics/",
    "//metrics",
    "/schema/",
    "/cluster//workers",
    "/%63luster/workers",
]
"""Other ways to write a route, if they are one at all."""

MODELS = [
    "%2e%2e",
    "../../../etc/passwd",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "..%c0%af..%c0%afetc",
    "%00",
    "echo%00",
    "echo%00.json",
    "echo/",
    "/echo/x",
    "ECHO",
    "echo%20",
    "%20echo",
    "echo%0a",
    "%ff%fe",
    "%c0%ae",
    "%ed%a0%80",
    "%F0%9F%98%80",
    "%e2%80%ae",
    "%1b[31m",
    "%3Cscript%3E",
    "{{7*7}}",
    "'%20OR%201=1--",
    "org/../echo/x",
    "org//echo",
    "file:///etc/passwd",
    "%252e%252e%252f",
    "*",
    "?",
    "con",
    "blobs/sha256-../../../../etc/passwd",
]

METHODS = ["PUT", "DELETE", "PATCH", "HEAD", "TRACE", "PROPFIND", "MKCOL", "COPY", "LOCK", "PURGE", "SEARCH", "QUERY"]
POSTS = [CHAT, "/v1/completions", "/v1/embeddings"]
GETS = ["/v1/models", "/v1/models/echo", "/health", "/ready", "/metrics", "/schema", "/cluster/workers"]

CASES = {
    **{f"GET {path}": Case(404, get(path), before_keys=True) for path in UNKNOWN},
    **{f"POST {path}": Case(404, post(path, GOOD), before_keys=True) for path in UNKNOWN[::3]},
    **{f"GET {path} for a route": Case((200, 401, 404), get(path), before_keys=True) for path in SAME},
    **{f"GET a model {name}": Case((200, 404), get(f"/v1/models/{name}")) for name in MODELS},
    **{
        f"{method} {path}": Case((405, 401), get(path, method=method), before_keys=True)
        for path in POSTS
        for method in ["GET", *METHODS]
    },
    **{
        f"{method} {path}": Case(405, get(path, method=method), before_keys=True)
        for path in GETS
        for method in ["POST", *METHODS]
    },
    "another method, in a header": Case(
        405, post("/v1/models", GOOD, b"x-http-method-override: GET\r\n"), before_keys=True
    ),
    "another method, in the query": Case(405, post("/v1/models?_method=GET", GOOD), before_keys=True),
    "another path, in a header": Case(
        404, get("/nowhere", b"x-original-url: /v1/models\r\nx-rewrite-url: /v1/models\r\n"), before_keys=True
    ),
    "another prefix, in a header": Case(404, get("/nowhere", b"x-forwarded-prefix: /v1\r\n"), before_keys=True),
    "a way out, in the query": Case(200, get("/v1/models?next=//evil.example&redirect=http://evil.example")),
}
