// The provider from npm as the service that a collective signs in with: node service.mjs PACKAGES PORT ALGORITHM BACK...
// Whoever types a name in its form is let in under it. `ada` is in the group of stewards, everybody in that of members.
import { pathToFileURL } from 'node:url';

const [packages, port, algorithm, ...back] = process.argv.slice(2);
const at = `${packages}/node_modules/oidc-provider/lib/index.js`;
const { default: Provider } = await import(pathToFileURL(at));
const { subtle } = globalThis.crypto;
const made = {
  RS256: { name: 'RSASSA-PKCS1-v1_5', modulusLength: 2048, publicExponent: new Uint8Array([1, 0, 1]), hash: 'SHA-256' },
  ES256: { name: 'ECDSA', namedCurve: 'P-256' },
}[algorithm];
const pair = await subtle.generateKey(made, true, ['sign', 'verify']);
const key = { ...(await subtle.exportKey('jwk', pair.privateKey)), use: 'sig', kid: 'one' };
delete key.key_ops;
delete key.alg;

const claims = (id) => ({
  sub: id,
  name: `${id} of the house`,
  preferred_username: id,
  email: `${id}@example.org`,
  email_verified: id !== 'mallory',
  groups: id === 'ada' ? ['house', 'keepers'] : id === 'stranger' ? ['elsewhere'] : ['house'],
});
const issuer = `http://127.0.0.1:${port}`;
const provider = new Provider(issuer, {
  clients: [{
    client_id: 'box',
    client_secret: 'the secret of the box',
    redirect_uris: back,
    response_types: ['code'],
    grant_types: ['authorization_code'],
    id_token_signed_response_alg: algorithm,
  }],
  claims: {
    openid: ['sub'],
    profile: ['name', 'preferred_username'],
    email: ['email', 'email_verified'],
    groups: ['groups'],
  },
  scopes: ['openid', 'profile', 'email', 'groups'],
  jwks: { keys: [key] },
  cookies: { keys: ['only for tests'] },
  pkce: { required: () => true },
  findAccount: (_, id) => ({ accountId: id, claims: () => claims(id) }),
});
provider.listen(Number(port), '127.0.0.1', () => console.log('ready'));
