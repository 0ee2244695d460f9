package forward

import (
	"path/filepath"
	"strconv"
	"strings"
)

// defaultNames are the service names for ports whose meaning is common knowledge.
var defaultNames = map[int]string{
	21:    "ftp",
	22:    "ssh",
	25:    "smtp",
	53:    "dns",
	80:    "http",
	110:   "pop3",
	139:   "smb",
	143:   "imap",
	389:   "ldap",
	443:   "https",
	445:   "smb",
	548:   "afp",
	554:   "rtsp",
	631:   "ipp",
	873:   "rsync",
	993:   "imaps",
	1433:  "mssql",
	1883:  "mqtt",
	2049:  "nfs",
	3306:  "mysql",
	3389:  "rdp",
	5432:  "postgres",
	5672:  "amqp",
	5900:  "vnc",
	6379:  "redis",
	8000:  "http",
	8080:  "http",
	8443:  "https",
	9418:  "git",
	27017: "mongodb",
}

// DefaultName is what a service at this target is called if nobody names it: by its
// port ("ssh", "http", else "port-3000") or by the socket file ("docker"). It holds
// only lower-case letters, digits and hyphens.
func (t Target) DefaultName() string {
	if t.Network == "unix" {
		return socketName(t.Address)
	}
	port := t.Port()
	if name, ok := defaultNames[port]; ok {
		return name
	}
	return "port-" + strconv.Itoa(port)
}

// maxName keeps a socket file's name a DNS label, 63 bytes (RFC 1035, 2.3.4), since
// nas.localhost is what a browser is told.
const maxName = 63

func socketName(path string) string {
	base := filepath.Base(path)
	base = strings.TrimSuffix(strings.TrimSuffix(base, ".socket"), ".sock")
	name := strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', '0' <= r && r <= '9':
			return r
		case 'A' <= r && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, base)
	if len(name) > maxName {
		name = name[:maxName]
	}
	if name = strings.Trim(name, "-"); name == "" {
		return "socket"
	}
	return name
}
