package deb

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

const manifests = `
apiVersion: v1
kind: Node
metadata: {name: node-1}
spec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24]}
status: {addresses: [{type: InternalIP, address: ` + nodeAddress + `}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {type: LoadBalancer, loadBalancerIP: ` + vip + `, ports: [{name: http, port: 80, nodePort: 30080}, {name: echo, port: 9000, nodePort: 30090}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}, {name: echo, port: 9000}]
endpoints: [{addresses: [` + podAddress + `], nodeName: node-1}]
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web, namespace: default, annotations: {kubernetes.io/ingress.class: sallyport}}
spec: {rules: [{host: web.example.com, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {name: http}}}}]}}]}
`

const dropIns = "/etc/systemd/system/sallyport.service.d"

const configuration = `
reach: pods # there is no kube-proxy that would answer on the node
loadBalancer: {ipAddressPools: [{name: public, addresses: [203.0.113.0/28]}]}
`

const kubeconfig = `
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://` + clientAddress + `:6443"}}]
users: [{name: u, user: {token: t}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`

// TestPackage is the life of an edge, in order: a step that fails ends it.
func TestPackage(t *testing.T) {
	required(t)
	deb := pack(t)
	t.Run("is what Debian's own check accepts", func(t *testing.T) {
		if out, err := exec.Command("lintian", "--allow-root", "--fail-on", "error,warning", deb).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	m := boot(t, filepath.Dir(deb))
	serve(t, m.outside)
	before := m.inventory()
	for _, step := range []struct {
		name string
		run  func(*machine)
	}{
		{"installs without being configured", (*machine).install},
		{"starts as its own user", (*machine).start},
		{"serves", (*machine).serves},
		{"restarts without failing a request", (*machine).restart},
		{"comes back when killed, on the same sockets", (*machine).kill},
		{"is upgraded without failing a request", (*machine).upgrade},
		{"is killed when it hangs", (*machine).hang},
		{"closes what it no longer listens on", (*machine).reconfigure},
		{"is stopped, and the kernel goes on", (*machine).stop},
		{"waits for a cluster that does not answer", (*machine).wait},
		{"runs with iptables-legacy", (*machine).legacy},
		{"runs in user space without other privileges", (*machine).userspace},
		{"is removed with all that is in the kernel", (*machine).remove},
		{"is installed again", (*machine).again},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.run(m.in(t)) }) {
			return
		}
	}
	t.Run("purge leaves nothing", func(t *testing.T) { m.in(t).purge(before) })
}

// pack builds the package into a folder of its own.
func pack(t *testing.T) string {
	t.Helper()
	cmd := exec.Command("../../deploy/debian/build", t.TempDir())
	cmd.Stderr = os.Stderr
	deb, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(deb))
}

func (m *machine) install() {
	m.sh("dpkg --install /srv/*.deb")
	if got := m.sh("systemctl is-enabled sallyport"); got != "enabled" {
		m.t.Errorf("the unit is %s", got)
	}
	if got := m.property("ActiveState", "ConditionResult", "Result"); got != "inactive no success" {
		m.t.Errorf("without a kubeconfig the unit is %s", got)
	}
	if got := m.sh("systemd-analyze verify sallyport.service"); got != "" {
		m.t.Errorf("the unit: %s", got)
	}
	if got := m.sh("cd /etc/sallyport && stat --format '%n %a %U:%G' . *"); got != ". 750 root:sallyport\nsallyport.yaml 644 root:root" {
		m.t.Errorf("the configuration is\n%s", got)
	}
}

func (m *machine) start() {
	m.write("/etc/sallyport/manifests/all.yaml", manifests)
	m.write("/etc/sallyport/sallyport.yaml", configuration)
	m.dropIn("manifests")
	m.sh("chgrp -R sallyport /etc/sallyport && systemctl start sallyport")
	m.credentials("sallyport", 1<<10|1<<12|1<<13) // CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW
}

// credentials checks the running process: its user, its capabilities by bit, and that it is confined.
func (m *machine) credentials(user string, capabilities uint64) {
	m.t.Helper()
	mask := fmt.Sprintf("%016x", capabilities)
	want := strings.Join([]string{"Uid: " + m.sh("id -u "+user), "CapPrm: " + mask, "CapBnd: " + mask, "NoNewPrivs: 1", "Seccomp: 2"}, "\n")
	got := m.sh(`awk '$1 ~ /^(Uid|CapPrm|CapBnd|NoNewPrivs|Seccomp):$/ { print $1, $2 }' /proc/` + m.property("MainPID") + `/status`)
	if got != want {
		m.t.Errorf("the process has\n%s\nwant\n%s", got, want)
	}
}

// dropIn installs one of the package's examples, as it says itself.
func (m *machine) dropIn(name string) {
	m.t.Helper()
	m.sh("install -D -m 644 -t " + dropIns + " /usr/share/doc/sallyport/examples/systemd/" + name + ".conf && systemctl daemon-reload")
}

func (m *machine) serves() {
	c := m.outside.HTTPClient()
	for _, address := range []string{machineAddress + ":30080", vip, machineAddress} {
		if err := get(c, "http://"+address+"/", "web.example.com"); err != nil {
			m.t.Errorf("%s: %v", address, err)
		}
	}
}

func (m *machine) restart() {
	during(m.t, m.outside, func() {
		for range 3 {
			m.sh("systemctl restart sallyport")
		}
	}).none(m.t)
}

// kill fails what is under way in the process, but no connection is refused and the kernel goes on.
func (m *machine) kill() {
	old := m.property("MainPID")
	l := during(m.t, m.outside, func() {
		m.sh("systemctl kill --signal KILL sallyport")
		until(m.t, "it has started again", func() error {
			if got := m.property("MainPID", "ActiveState"); got == old+" active" || !strings.HasSuffix(got, " active") {
				return fmt.Errorf("MainPID %s, was %s", got, old)
			}
			return nil
		})
	})
	cutOff := len(l.failed)
	l.failed = slices.DeleteFunc(l.failed, cut)
	l.none(m.t)
	if cutOff -= len(l.failed); cutOff > 6 {
		m.t.Errorf("%d requests were cut off, by a process that had no more than 6 at once", cutOff)
	}
}

// cut is a request whose process died. The last is net/http's, which does not export it, for an end before the answer began.
func cut(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) ||
		strings.Contains(err.Error(), "http: server closed idle connection")
}

// hang stops the process by a signal, so that it no longer tells systemd that it is alive.
func (m *machine) hang() {
	const impatient = dropIns + "/impatient.conf"
	m.write(impatient, "[Service]\nWatchdogSec=3s\n")
	m.sh("systemctl daemon-reload && systemctl restart sallyport")
	old := m.property("MainPID")
	m.sh("kill -STOP " + old)
	until(m.t, "it is started again", func() error {
		if got := m.property("MainPID", "ActiveState"); got == old+" active" || !strings.HasSuffix(got, " active") {
			return fmt.Errorf("MainPID %s, was %s", got, old)
		}
		return nil
	})
	m.serves()
	m.sh("rm " + impatient + " && systemctl daemon-reload && systemctl restart sallyport")
}

func (m *machine) reconfigure() {
	m.write("/etc/sallyport/sallyport.yaml", configuration+"l7: {httpPort: 8080}\n")
	m.sh("systemctl restart sallyport")
	c := m.outside.HTTPClient()
	if err := get(c, "http://"+machineAddress+":8080/", "web.example.com"); err != nil {
		m.t.Error(err)
	}
	if err := get(c, "http://"+machineAddress+"/", "web.example.com"); !errors.Is(err, syscall.ECONNREFUSED) {
		m.t.Errorf("port 80 is still listened on: %v", err)
	}
	m.write("/etc/sallyport/sallyport.yaml", configuration)
	m.sh("systemctl restart sallyport")
	m.serves()
}

func (m *machine) stop() {
	m.sh("systemctl stop sallyport")
	c := m.outside.HTTPClient()
	if err := get(c, "http://"+machineAddress+":30080/", ""); err != nil {
		m.t.Errorf("the NodePort: %v", err)
	}
	if err := get(c, "http://"+machineAddress+"/", "web.example.com"); !errors.Is(err, syscall.ECONNREFUSED) {
		m.t.Errorf("port 80 is still listened on: %v", err)
	}
	m.sh("systemctl start sallyport")
	m.serves()
}

// wait has the unit as the package installs it, and a kubeconfig of a server that refuses connections.
func (m *machine) wait() {
	m.sh("systemctl stop sallyport && rm -r " + dropIns + " /etc/sallyport/sallyport.yaml && systemctl daemon-reload")
	m.sh("dpkg --install --force-confmiss /srv/*.deb")
	m.write("/etc/sallyport/kubeconfig", kubeconfig)
	m.sh("chgrp sallyport /etc/sallyport/kubeconfig && chmod 640 /etc/sallyport/kubeconfig && systemctl start sallyport")
	if got := m.property("ActiveState", "NRestarts"); got != "active 0" {
		m.t.Errorf("the unit is %s", got)
	}
	if got := m.sh("sallyport check"); !strings.Contains(got, "https://"+clientAddress+":6443") {
		m.t.Errorf("check does not find the kubeconfig:\n%s", got)
	}
	m.dropIn("manifests")
	m.write("/etc/sallyport/sallyport.yaml", configuration)
}

func (m *machine) upgrade() {
	old := m.property("MainPID")
	during(m.t, m.outside, func() { m.sh("dpkg --install /srv/*.deb") }).none(m.t)
	if m.property("MainPID") == old {
		m.t.Error("the old program still runs")
	}
}

func (m *machine) legacy() {
	m.dropIn("legacy")
	m.write("/etc/sallyport/sallyport.yaml", configuration+"l4: {iptablesBackend: legacy}\n")
	m.sh("systemctl restart sallyport")
	m.credentials("root", 1<<10|1<<12|1<<13)
	m.serves()
	if rules := m.sh("iptables-legacy-save"); !strings.Contains(rules, "SALLY-") {
		m.t.Errorf("no rules in legacy: %s", rules)
	}
	m.sh("rm " + dropIns + "/legacy.conf && systemctl daemon-reload")
}

func (m *machine) userspace() {
	m.sh("systemctl stop sallyport && sallyport cleanup && ip route add 10.244.1.0/24 via " + nodeAddress)
	m.dropIn("userspace")
	m.write("/etc/sallyport/sallyport.yaml", configuration+"l4: {dataplane: userspace}\n")
	m.sh("systemctl start sallyport")
	m.credentials("sallyport", 1<<10)
	if err := get(m.outside.HTTPClient(), "http://"+machineAddress+":30080/", ""); err != nil {
		m.t.Error(err)
	}
	m.sh("systemctl stop sallyport && ip route del 10.244.1.0/24 && rm " + dropIns + "/userspace.conf && systemctl daemon-reload")
	m.write("/etc/sallyport/sallyport.yaml", configuration)
	m.sh("systemctl start sallyport")
	m.serves()
}

func (m *machine) remove() {
	m.sh("dpkg --remove sallyport && test -f /etc/sallyport/sallyport.yaml")
	m.kernelIsClean()
}

// again installs the package that was removed, beside the configuration that stayed: it starts.
func (m *machine) again() {
	m.sh("dpkg --install /srv/*.deb && systemctl is-active sallyport")
	m.serves()
}

func (m *machine) kernelIsClean() {
	m.t.Helper()
	kernel := m.sh("iptables-save; iptables-legacy-save; ip link; ip route show table all; ip address")
	for _, ours := range []string{"SALLY-", "sally0", "10.244.1.0", vip} {
		if strings.Contains(kernel, ours) {
			m.t.Errorf("%s is left in\n%s", ours, kernel)
		}
	}
	if got := m.sh("cat /proc/sys/net/ipv4/ip_forward"); got != "0" {
		m.t.Errorf("ip_forward is %s, was 0 before", got)
	}
}

func (m *machine) purge(before []string) {
	m.sh("dpkg --purge sallyport && rm -r " + dropIns + " && systemctl daemon-reload")
	m.kernelIsClean()
	for _, line := range m.inventory() {
		if _, known := slices.BinarySearch(before, line); !known {
			m.t.Errorf("left behind: %s", line)
		}
	}
}

// inventory lists all files but logs, dpkg's own books and what iptables and systemd keep in /run, all users and groups, and the
// units that systemd knows, ordered.
func (m *machine) inventory() []string {
	m.t.Helper()
	find := "find / /run -xdev ! -name xtables.lock ! -name agetty.reload"
	for _, folder := range []string{"/proc", "/sys", "/tmp", "/run/log", "/var/log", "/var/cache", "/var/lib/dpkg"} {
		find += " ! -path '" + folder + "/*'"
	}
	files := m.sh(find)
	names := m.sh("getent passwd; getent group; systemctl list-unit-files --no-legend")
	names += "\n" + m.sh("systemctl list-units --all --plain --no-legend | grep sally || true")
	lines := strings.Split(files+"\n"+names, "\n")
	slices.Sort(lines)
	return lines
}

// property is what systemd knows of the service, separated by spaces.
func (m *machine) property(names ...string) string {
	m.t.Helper()
	var values []string
	for _, name := range names {
		values = append(values, m.sh("systemctl show --value --property "+name+" sallyport"))
	}
	return strings.Join(values, " ")
}
