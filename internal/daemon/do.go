package daemon

import (
	"context"
	"encoding/json"
	"fmt"
)

// do carries out one request and returns when it is done, or for what a wish
// holds open, when ctx ends. stream is the client's connection, nil for a
// request from another peer.
func (d *Daemon) do(ctx context.Context, req Request, emit func(Event), stream *wishStream) error {
	switch req.Command {
	case "join":
		return with(req, func(r JoinRequest) error { return d.join(ctx, r, emit) })
	case "invite":
		return with(req, func(r InviteRequest) error { return d.invite(ctx, r, emit) })
	case "invites":
		return d.invites(ctx, emit)
	case "cancel-invite":
		return with(req, func(r CancelInviteRequest) error { return d.cancelInvite(ctx, r, emit) })
	case "expose":
		return with(req, func(r ExposeRequest) error {
			if r.Keep {
				return d.keep(ctx, exposeWish(r, fromKept), emit)
			}
			return d.expose(ctx, r, fromCommand, emit)
		})
	case "unexpose":
		return with(req, func(r UnexposeRequest) error { return d.unexpose(ctx, r, emit) })
	case "connect":
		return with(req, func(r ConnectRequest) error {
			if r.Keep && r.Local != "-" {
				return d.keep(ctx, connectWish(r, fromKept), emit)
			}
			return d.connect(ctx, r, fromCommand, emit, stream)
		})
	case "socks":
		return with(req, func(r SocksRequest) error {
			if r.Keep {
				return d.keep(ctx, socksWish(r, fromKept), emit)
			}
			return d.serveSocks(ctx, r, fromCommand, emit)
		})
	case "disconnect":
		return with(req, func(r DisconnectRequest) error { return d.disconnect(ctx, r, emit) })
	case "reload":
		return d.reloadConfig(emit)
	case "names":
		return d.names(emit)
	case "ls":
		return d.ls(ctx, emit)
	case "status":
		return with(req, func(r StatusRequest) error { return d.statusReport(ctx, r, emit) })
	case "peers":
		return d.peers(emit)
	case "ping":
		return with(req, func(r PingRequest) error { return d.ping(ctx, r, emit) })
	case "doctor":
		return with(req, func(r DoctorRequest) error { return d.doctor(ctx, r, emit) })
	case "page":
		return with(req, func(r PageRequest) error { return d.serveUI(ctx, r, emit) })
	case "speed":
		return with(req, func(r SpeedRequest) error { return d.speed(ctx, r, emit) })
	case "revoke":
		return with(req, func(r RevokeRequest) error { return d.revoke(ctx, r, emit) })
	case "rename":
		return with(req, func(r RenameRequest) error { return d.rename(ctx, r, emit) })
	case "trust":
		return with(req, func(r TrustRequest) error { return d.trust(r, emit) })
	case "allow":
		return with(req, func(r AllowRequest) error { return d.allow(ctx, r, emit) })
	case "hand-over":
		return with(req, func(r HandOverRequest) error { return d.handOver(ctx, r, emit) })
	case "owner-sign":
		return d.ownerSign(emit)
	case "owner-export":
		return with(req, func(r OwnerExportRequest) error { return d.ownerExport(r, emit) })
	case "owner-import":
		return with(req, func(r OwnerImportRequest) error { return d.ownerImport(ctx, r, emit) })
	case "owner-move":
		return with(req, func(r OwnerMoveRequest) error { return d.ownerMove(ctx, r, emit) })
	case "debug":
		return with(req, func(r DebugRequest) error { return d.debug(ctx, r, emit) })
	case "leave":
		return with(req, func(r LeaveRequest) error { return d.leave(ctx, r, emit) })
	case "stop":
		return with(req, func(r StopRequest) error { return d.stop(r) })
	}
	return fail(ExitFailed, "version", "end the daemon, and the next command starts the new one: fwd stop",
		"daemon %s does not know the command %q", Version(), req.Command)
}

// with reads the request's arguments for f.
func with[T any](req Request, f func(T) error) error {
	var args T
	if len(req.Args) > 0 {
		if err := json.Unmarshal(req.Args, &args); err != nil {
			return fmt.Errorf("read the arguments of %s: %w", req.Command, err)
		}
	}
	return f(args)
}

// stop ends the daemon after the answer is out.
func (d *Daemon) stop(req StopRequest) error {
	d.mu.Lock()
	others := d.wishes - 1 // this very one
	foreground := d.idle == nil
	d.mu.Unlock()
	if req.IfIdle && (others > 0 || foreground) {
		return fail(ExitFailed, "in-use", "", "the daemon is in use")
	}
	d.log.Info("asked to stop")
	d.finish(errStopped)
	return nil
}
