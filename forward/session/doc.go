// Package session gives byte streams between two peers that outlive the libp2p streams carrying them.
//
//	e := session.New(session.Config{Self: id, Open: open, Authorize: authorize})
//	go e.Serve(ctx)
//	host.SetStreamHandler("/fwd/lane/1", func(s network.Stream) { e.Handle(s.Conn().RemotePeer(), s) })
//	conn, err := e.Dial(ctx, nas, "ssh")     // the entry
//	in, err := e.Accept(ctx); in.Accept()    // the exit
//
// What happens to one connection: Dial picks a lane of the link to that peer and opens a stream in it (send.go); its first
// bytes name the service (open.go). The exit reads them and accepts or refuses (Incoming). From then on bytes go Conn →
// lane → the libp2p stream of the moment → the far lane's reader → the far Conn's inbox. A lane (lane.go) keeps what the peer has not acknowledged (ring.go).
// When a better path is there (Renew) or the old one falls silent (watch.go), the entry opens another stream and attaches
// the lane to it (attach.go, Endpoint.Handle); both sides go on where the other one's count ends. The session does not notice.
//
// The promise: every byte written is read once and in order, or both ends get ErrReset. A FIN is a FIN, half-close
// is carried, and no failure ever looks like an end.
//
// What it does not do: choose paths (Open does), know services or who may use them (whoever Accepts does), copy to sockets
// (package forward), or outlive the process.
//
// Locks are taken in this order: Endpoint.mu, link.mu, lane.mu, Conn.mu, and then any of watcher.mu, memory.mu, signal.mu.
//
// The wire is docs/session.md.
package session
