"""An app that lets people sign in as Open WebUI does: authlib's Starlette client, set by the same environment variables in the
same way, at the same addresses. python webui.py PORT

What it learns it answers as JSON, with the role that Open WebUI gives by the same rules.
"""

import os
import sys

import uvicorn
from authlib.integrations.starlette_client import OAuth
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.responses import JSONResponse
from starlette.routing import Route

env = os.environ
oauth = OAuth()
oauth.register(
    name="oidc",
    client_id=env["OAUTH_CLIENT_ID"],
    client_secret=env["OAUTH_CLIENT_SECRET"],
    server_metadata_url=env["OPENID_PROVIDER_URL"],
    client_kwargs={
        "scope": env["OAUTH_SCOPES"],
        "code_challenge_method": env["OAUTH_CODE_CHALLENGE_METHOD"],
    },
    redirect_uri=env["OPENID_REDIRECT_URI"],
)


async def login(request):
    return await oauth.oidc.authorize_redirect(request, env["OPENID_REDIRECT_URI"])


async def callback(request):
    try:
        token = await oauth.oidc.authorize_access_token(request)
    except Exception as error:
        return JSONResponse({"refused": str(error)}, status_code=400)
    proof = token.get("userinfo") or {}
    told = await oauth.oidc.userinfo(token=token)
    groups = told.get(env["OAUTH_ROLES_CLAIM"]) or []
    admin = env["OAUTH_ADMIN_ROLES"] in groups
    user = env["OAUTH_ALLOWED_ROLES"] in groups
    role = "admin" if admin else "user" if user else "pending"
    shown = {
        "email": told.get("email"),
        "name": told.get(env["OAUTH_USERNAME_CLAIM"]),
        "role": role,
        "sub": proof.get("sub"),
    }
    return JSONResponse(shown)


routes = [Route("/oauth/oidc/login", login), Route("/oauth/oidc/callback", callback)]
keep = Middleware(SessionMiddleware, secret_key="only for tests")
app = Starlette(routes=routes, middleware=[keep])
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error")
