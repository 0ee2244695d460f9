// Package datagram carries datagrams between two peers, each as a whole or not at all.
//
//	e := datagram.New(datagram.Config{Open: openStream, Packets: quicOf, Authorize: mayUse, …})
//	go e.Serve(ctx)
//	flow, err := e.Dial(nas, "dns", sink)   // at the entry; costs no round trip
//	flow.Send(question)                     // never waits; the answer comes to sink.Deliver
//
// What happens to one datagram: Send puts it in the queue of its peer, where it waits for 200 ms at most
// and makes room for younger ones. The carrier's writer takes it out and sends it as a QUIC datagram where the
// peer is reached by QUIC directly and it fits, else in a frame on the carrier's stream. The far side finds its flow by its
// number and hands it to that flow's sink. The first datagram brings the service's name along; the far side asks
// whether the peer may use that, and offers the flow by Accept.
//
// When the path changes, the entry opens a new carrier on the new one and the flows go on; what was on its way by the
// old one may arrive or not. Nothing is sent twice by this package and nothing is put in order.
//
// The wire is in docs/udp.md. The package knows no addresses, sockets, relays or libp2p hosts.
package datagram
