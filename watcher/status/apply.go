package status

import (
	"context"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	applycore "k8s.io/client-go/applyconfigurations/core/v1"
	applymeta "k8s.io/client-go/applyconfigurations/meta/v1"
	applynetworking "k8s.io/client-go/applyconfigurations/networking/v1"

	"sallyport/watcher/model"
)

// Status is written by server-side apply. The API server keeps, field by field, who wrote it
// (metadata.managedFields), and that settles what nothing in a snapshot could:
//
//   - An apply without force fails where another controller has written in the meantime. Force is used only over addresses
//     that the snapshot shows, so that lb has decided, knowing them, that the Service is ours.
//   - An apply of nothing takes back exactly what we have written: what another controller has put in its place stays.
//   - The condition lives beside the conditions of others, in one request with the addresses.
//   - It needs the verb patch alone, and no resourceVersion, which a snapshot does not have. metadata.uid keeps it off an
//     object of the same name that was made since.

// ReasonProgrammed is the reason of the condition model.StatusCondition.
const ReasonProgrammed = "Programmed"

// apply sends a change. released says that we hold nothing of the status any more, whatever it shows.
func (w *Writer) apply(ctx context.Context, c change) (released bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	o := metav1.ApplyOptions{FieldManager: FieldManager, Force: len(c.seen.Addresses) > 0 && len(c.want) > 0}
	ref := c.seen.Ref
	if ref.Kind == kindIngress {
		_, err = w.client.NetworkingV1().Ingresses(ref.Namespace).ApplyStatus(ctx, ingressStatus(c), o)
	} else {
		_, err = w.client.CoreV1().Services(ref.Namespace).ApplyStatus(ctx, serviceStatus(c, time.Now()), o)
	}
	return err == nil && len(c.want) == 0, err
}

// serviceStatus is what we want to have in the Service, at all.
func serviceStatus(c change, now time.Time) *applycore.ServiceApplyConfiguration {
	a := applycore.Service(c.seen.Ref.Name, c.seen.Ref.Namespace)
	if c.uid != "" {
		a.WithUID(types.UID(c.uid))
	}
	if len(c.want) == 0 {
		return a
	}
	var entries []*applycore.LoadBalancerIngressApplyConfiguration
	for _, ip := range c.want {
		// With ipMode VIP kube-proxy would keep in-cluster clients from the edge (KEP-1860).
		entries = append(entries, applycore.LoadBalancerIngress().WithIP(ip.String()).WithIPMode(corev1.LoadBalancerIPModeProxy))
	}
	return a.WithStatus(applycore.ServiceStatus().
		WithLoadBalancer(applycore.LoadBalancerStatus().WithIngress(entries...)).
		WithConditions(applymeta.Condition().
			WithType(model.StatusCondition).WithStatus(metav1.ConditionTrue).WithReason(ReasonProgrammed).
			WithMessage("edges answer for " + addressList(c.want)).
			WithLastTransitionTime(metav1.NewTime(now)))) // written only with a change of the addresses
}

func ingressStatus(c change) *applynetworking.IngressApplyConfiguration {
	a := applynetworking.Ingress(c.seen.Ref.Name, c.seen.Ref.Namespace)
	if c.uid != "" {
		a.WithUID(types.UID(c.uid))
	}
	if len(c.want) == 0 {
		return a
	}
	var entries []*applynetworking.IngressLoadBalancerIngressApplyConfiguration
	for _, ip := range c.want {
		entries = append(entries, applynetworking.IngressLoadBalancerIngress().WithIP(ip.String()))
	}
	return a.WithStatus(applynetworking.IngressStatus().
		WithLoadBalancer(applynetworking.IngressLoadBalancerStatus().WithIngress(entries...)))
}

func addressList(ips []netip.Addr) string {
	text := make([]string, len(ips))
	for i, ip := range ips {
		text[i] = ip.String()
	}
	return strings.Join(text, ", ")
}
