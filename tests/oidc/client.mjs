// The client library from npm, as an app that people sign in to with the box: node client.mjs PACKAGES ISSUER CLIENT SECRET BACK
// It reads one line at a time: `begin` writes an address to go to; an address that came back is redeemed, and what was told is
// written as JSON; `refresh` gets new tokens; `who` asks again. An error is one line that begins with `no`.
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';

const [packages, issuer, id, secret, back] = process.argv.slice(2);
const at = `${packages}/node_modules/openid-client/build/index.js`;
const oidc = await import(pathToFileURL(at));
const auth = secret ? oidc.ClientSecretBasic(secret) : oidc.None();
const config = await oidc.discovery(new URL(issuer), id, undefined, auth, { execute: [oidc.allowInsecureRequests] });
oidc.enableNonRepudiationChecks(config);
let kept = {};
let tokens;
console.log('ready');
for await (const line of createInterface({ input: process.stdin })) {
  try {
    if (line === 'begin') {
      kept = { verifier: oidc.randomPKCECodeVerifier(), state: oidc.randomState(), nonce: oidc.randomNonce() };
      const to = oidc.buildAuthorizationUrl(config, {
        redirect_uri: back,
        scope: 'openid profile email groups offline_access',
        code_challenge: await oidc.calculatePKCECodeChallenge(kept.verifier),
        code_challenge_method: 'S256',
        state: kept.state,
        nonce: kept.nonce,
      });
      console.log(to.href);
    } else if (line === 'refresh') {
      tokens = { ...tokens, ...(await oidc.refreshTokenGrant(config, tokens.refresh_token)) };
      console.log('{}');
    } else if (line === 'who') {
      console.log(JSON.stringify(await oidc.fetchUserInfo(config, tokens.access_token, kept.sub)));
    } else {
      tokens = await oidc.authorizationCodeGrant(config, new URL(line), {
        pkceCodeVerifier: kept.verifier,
        expectedState: kept.state,
        expectedNonce: kept.nonce,
        idTokenExpected: true,
      });
      kept.sub = tokens.claims().sub;
      const told = await oidc.fetchUserInfo(config, tokens.access_token, kept.sub);
      console.log(JSON.stringify({ proof: tokens.claims(), told }));
    }
  } catch (error) {
    console.log(`no ${error.code ?? ''} ${error.error ?? ''} ${error.message}`.replaceAll('\n', ' '));
  }
}
