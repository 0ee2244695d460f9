// Package identity says who we are and who belongs.
//
//	key, _, err := identity.LoadOrCreateKey("identity.key") // our peer
//	book, err := identity.OpenBook("roster")                 // the network as we know it
//	err = identity.Authorize(book.For(p), book.Now(time.Now()), p, self, "nas", allow)
//
// A network is the peers on its roster, and the roster is one signed page: the
// owner, who alone holds the network key, seals it ([Seal]); everyone else checks
// the seal ([Open]) and keeps the highest (term, epoch) ever seen ([Book]). There
// is no certificate to expire and no list of the revoked: who is not on the
// newest page does not belong.
//
// What happens when a machine joins: the owner writes an invite ([Owner.Invite]),
// a person carries the code to the new machine, which turns it into a request
// ([Invite.Request]). Only the owner can read it, whoever carries it. The owner
// puts the new peer on the next roster, on disk first ([Owner.Join]), and the
// reply, readable only by the holder of the code, is that roster.
//
// What happens when a peer asks for a service: [Authorize] is asked, and nothing
// else is. It wants the peer on the roster, unexpired, with a capability and
// grants that cover the service, and named by the service's own [Allow] list.
//
// The package holds no libp2p host, opens no connection and reads no clock: time
// comes in as an argument, and [Book.Now] makes it the later of the clock and the
// newest issue time seen, so that a clock set back revives nothing.
//
// Every file is written whole and on disk before its content counts ([WriteFile]).
// A damaged file is named in the error and left where it is; private files that
// others may read are refused with the command that mends it.
package identity
