package agent

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"sallyport/bench/lab/network"
)

func TestImageName(t *testing.T) {
	for _, tt := range []struct{ ref, want string }{
		{"agnhost", "agnhost"},
		{"agnhost:2.59", "agnhost"},
		{"registry.k8s.io/e2e-test-images/agnhost:2.59", "agnhost"},
		{"localhost:5000/agnhost", "agnhost"},
		{"localhost:5000/x/echo-basic:v1@sha256:0123", "echo-basic"},
		{"gcr.io/k8s-staging-gateway-api/echo-basic@sha256:0123", "echo-basic"},
	} {
		if got := ImageName(tt.ref); got != tt.want {
			t.Errorf("ImageName(%q) = %q, want %q", tt.ref, got, tt.want)
		}
	}
}

func TestCommandLine(t *testing.T) {
	images := imageTable{"agnhost": "/cache/bin/agnhost-1.36", "echo-basic": "/cache/bin/echo-basic"}
	env := map[string]string{"PORT": "80"}
	for _, tt := range []struct {
		name          string
		image         string
		command, args []string
		want          string
	}{
		{"args only", "r/agnhost:1", nil, []string{"netexec", "--http-port=$(PORT)"}, "/cache/bin/agnhost-1.36 netexec --http-port=80"},
		{"nothing: the image's CMD", "agnhost", nil, nil, "/cache/bin/agnhost-1.36 pause"},
		{"an image without CMD", "echo-basic", nil, nil, "/cache/bin/echo-basic"},
		{"the image's own path", "agnhost", []string{"/agnhost", "serve-hostname"}, nil, "/cache/bin/agnhost-1.36 serve-hostname"},
		{"the image's own name", "agnhost", []string{"agnhost"}, []string{"pause"}, "/cache/bin/agnhost-1.36 pause"},
		{"a program of the machine", "agnhost", []string{"/bin/sh", "-c"}, []string{"true"}, "/bin/sh -c true"},
		{"a program nowhere", "agnhost", []string{"/no/such"}, nil, `command "/no/such": neither the program of image "agnhost" nor one of this machine`},
		{"an unknown image", "r/nginx:1", []string{"/bin/sh"}, nil, "which knows agnhost, echo-basic: add it with --image nginx=BINARY"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			argv, err := images.commandLine(&corev1.Container{Image: tt.image, Command: tt.command, Args: tt.args}, env)
			got := strings.Join(argv, " ")
			if err != nil {
				got = err.Error()
			}
			if !strings.Contains(got, tt.want) {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestExpand(t *testing.T) {
	known := map[string]string{"A": "1", "B": ""}
	for _, tt := range []struct{ in, want string }{
		{"", ""},
		{"plain", "plain"},
		{"$(A)", "1"},
		{"x$(A)y$(B)z", "x1yz"},
		{"$(C)", "$(C)"},
		{"$$(A)", "$(A)"},
		{"$$$(A)", "$1"},
		{"$A $", "$A $"},
		{"$(A", "$(A"},
	} {
		if got := expand(tt.in, known); got != tt.want {
			t.Errorf("expand(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

func TestContainerEnv(t *testing.T) {
	t.Setenv(network.LabVariable, "blue")
	pod := testPod("web", "true")
	pod.Labels = map[string]string{"app.kubernetes.io/name": "web"}
	field := func(name, path string) corev1.EnvVar {
		return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}}
	}
	all := []corev1.EnvFromSource{
		{Prefix: "S_", SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "keys"}}},
		{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}}},
		{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "none"}, Optional: new(true)}},
	}
	c := &corev1.Container{Name: "main", EnvFrom: all, Env: []corev1.EnvVar{
		field("NAME", "metadata.name"), field("NS", "metadata.namespace"), field("UID", "metadata.uid"), field("NODE", "spec.nodeName"),
		field("IP", "status.podIP"), field("IPS", "status.podIPs"), field("HOST", "status.hostIP"), field("HOSTS", "status.hostIPs"),
		field("APP", "metadata.labels['app.kubernetes.io/name']"), field("NONE", "metadata.annotations['none']"),
		fromSecret("PASSWORD", "keys", "password", false), fromConfigMap("COLOUR", "settings", "colour", false),
		fromSecret("UNSET", "keys", "none", true), fromConfigMap("UNSET2", "none", "colour", true),
		{Name: "URL", Value: "http://$(IP)/$(LATER)"}, {Name: "LATER", Value: "x"}, {Name: "HOSTNAME", Value: "mine"},
	}}
	facts := podFacts{hostname: "web", hostIPs: addrs("10.0.0.1", "fd00:1::1"), podIPs: addrs("10.1.0.2", "fd00::2")}
	env, err := containerEnv(t.Context(), c, contents{testConfig(), pod, facts})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"PATH=" + searchPath, "HOSTNAME=mine", "SALLYPORT_LAB_NAME=blue",
		"S_password=xyzzy", "S_user=joe", "colour=blue", "NAME=web", "NS=default", "UID=web-uid", "NODE=node-1",
		"IP=10.1.0.2", "IPS=10.1.0.2,fd00::2", "HOST=10.0.0.1", "HOSTS=10.0.0.1,fd00:1::1", "APP=web", "NONE=", "PASSWORD=xyzzy", "COLOUR=blue", "URL=http://10.1.0.2/$(LATER)", "LATER=x",
	}
	if got := env.list(); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// testConfig reads a Secret keys and a ConfigMap settings.
func testConfig() *configReader {
	return newConfigReader(fake.NewClientset(
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "keys"}, Data: map[string][]byte{"user": []byte("joe"), "password": []byte("xyzzy")}},
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "settings"}, Data: map[string]string{"colour": "blue"}},
	), "default")
}

func fromSecret(name, object, key string, optional bool) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
		LocalObjectReference: corev1.LocalObjectReference{Name: object}, Key: key, Optional: &optional,
	}}}
}

func fromConfigMap(name, object, key string, optional bool) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{
		LocalObjectReference: corev1.LocalObjectReference{Name: object}, Key: key, Optional: &optional,
	}}}
}

func TestContainerEnvRefuses(t *testing.T) {
	none := corev1.LocalObjectReference{Name: "none"}
	resource := &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{}}
	limits := &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "limits.cpu"}}
	for _, tt := range []struct {
		name string
		c    corev1.Container
		want string
	}{
		{"envFrom of nothing", corev1.Container{EnvFrom: []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: none}}}},
			`container "": envFrom[0]: read secret default/none: secrets "none" not found`},
		{"missing key", corev1.Container{Env: []corev1.EnvVar{fromSecret("S", "keys", "k", false)}},
			`container "": env "S": secret default/keys has no key "k"`},
		{"missing object", corev1.Container{Env: []corev1.EnvVar{fromConfigMap("S", "none", "k", false)}},
			`container "": env "S": read configMap default/none: configmaps "none" not found`},
		{"resourceFieldRef", corev1.Container{Env: []corev1.EnvVar{{Name: "S", ValueFrom: resource}}},
			`container "": env "S": valueFrom supports only fieldRef, secretKeyRef and configMapKeyRef in the lab's node agent`},
		{"unknown field", corev1.Container{Env: []corev1.EnvVar{{Name: "L", ValueFrom: limits}}},
			`container "": env "L": fieldRef "limits.cpu" is not supported`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := containerEnv(t.Context(), &tt.c, contents{testConfig(), testPod("web", "true"), podFacts{}})
			if got := fmt.Sprint(err); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestCheckSupported(t *testing.T) {
	always, both := corev1.ContainerRestartPolicyAlways, corev1.MountPropagationBidirectional
	for _, tt := range []struct {
		name string
		c    corev1.Container
		want string
	}{
		{"plain", corev1.Container{}, "<nil>"},
		{"subPathExpr", corev1.Container{Name: "c", VolumeMounts: []corev1.VolumeMount{{Name: "certs", SubPathExpr: "$(POD)"}}},
			`container "c": subPathExpr "$(POD)" is not supported by the lab's node agent`},
		{"mountPropagation", corev1.Container{Name: "c", VolumeMounts: []corev1.VolumeMount{{Name: "certs", MountPropagation: &both}}},
			`container "c": mountPropagation Bidirectional is not supported by the lab's node agent`},
		{"sidecar", corev1.Container{Name: "c", RestartPolicy: &always},
			`container "c": a restartPolicy of its own is not supported by the lab's node agent`},
		{"postStart", corev1.Container{Name: "c", Lifecycle: &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{}}},
			`container "c": lifecycle.postStart is not supported by the lab's node agent`},
		{"grpc probe", corev1.Container{Name: "c", ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{}}}},
			`container "c": grpc probes are not supported by the lab's node agent`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := fmt.Sprint(checkSupported(&corev1.PodSpec{}, &tt.c)); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestCheckSupportedOfAPod(t *testing.T) {
	ported := &corev1.Container{Name: "a", Ports: []corev1.ContainerPort{{ContainerPort: 80, HostPort: 80}}}
	for _, tt := range []struct {
		name string
		pod  corev1.PodSpec
		want string
	}{
		{"host port", corev1.PodSpec{}, `container "a": hostPort 80 is not supported by the lab's node agent`},
		{"host network, where the API server sets the host port itself", corev1.PodSpec{HostNetwork: true}, "<nil>"},
		{"deadline", corev1.PodSpec{HostNetwork: true, ActiveDeadlineSeconds: new(int64(1))}, "activeDeadlineSeconds is not supported by the lab's node agent"},
	} {
		if got := fmt.Sprint(checkSupported(&tt.pod, ported)); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
}
